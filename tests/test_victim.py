import pytest
import torch
from torch import Tensor, nn

from robench.errors import AttackError, ConfigError, ModelError, NoGradientError
from robench.inference import predict, untouched
from robench.spec import ThreatModel
from robench.victim import Victim

THREAT = ThreatModel.parse("linf(0.1)")


class Threshold(nn.Module):
    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))
        self.widths = []

    def forward(self, x):
        self.widths.append(len(x))
        mean = x.flatten(1).mean(1)
        return torch.stack([self.level - mean, mean - self.level], 1)


def setting(model=None, **options):
    x, y = torch.full((4, 1, 2, 2), 0.45), torch.zeros(4, dtype=torch.int64)
    return Victim(model or Threshold(), x, y, threat=THREAT, **options)


def test_passes_are_charged_to_the_samples_that_asked_and_padded_to_the_width():
    victim, rows = setting(), torch.tensor([0, 2])
    victim.margins(victim.x[rows], rows)
    victim.gradient(victim.x[rows], rows)
    assert victim.forwards.tolist() == [2, 0, 2, 0]
    assert victim.backwards.tolist() == [1, 0, 1, 0]
    assert set(victim.model.widths) == {64}


def test_the_first_success_is_kept_and_stays():
    victim, rows = setting(), torch.arange(4)
    victim.margins(victim.x + 0.08, rows)
    assert victim.broken.all()
    victim.margins(victim.x + 0.1, rows)
    assert torch.equal(victim.result(), victim.x + 0.08)
    assert not len(victim.alive())


def test_a_success_outside_the_ball_or_the_box_is_none():
    victim, rows = setting(), torch.arange(4)
    victim.margins(victim.x + 0.2, rows)
    victim.margins(torch.full_like(victim.x, torch.nan), rows)
    assert not victim.broken.any()
    assert torch.equal(victim.result(), victim.x)


def test_without_success_the_lowest_margin_is_kept():
    victim, rows = setting(), torch.arange(4)
    for move in (0.0, 0.03, 0.01):
        victim.margins(victim.x + move, rows)
    assert torch.equal(victim.result(), victim.x + 0.03)


def test_the_gradient_is_that_of_each_sample_alone():
    victim, rows = setting(width=16), torch.arange(4)
    found = victim.gradient(victim.x, rows, "margin")
    assert torch.allclose(found.gradient, torch.full_like(victim.x, 0.5))
    assert torch.allclose(found.margin, torch.full((4,), 0.1))
    assert torch.allclose(found.loss, -found.margin)
    assert victim.model.level.grad is None


@pytest.mark.parametrize(
    ("access", "refused"),
    [("white", []), ("score", ["gradient"]), ("decision", ["gradient", "margins"]), ("transfer", ["gradient", "margins"])],
)
def test_what_the_access_level_does_not_grant_is_refused(access, refused):
    victim, rows = setting(access=access), torch.arange(4)
    for name in ("gradient", "margins", "misclassified"):
        if name in refused:
            with pytest.raises(AttackError, match=f"access must be at most '{access}'"):
                getattr(victim, name)(victim.x, rows)
        else:
            getattr(victim, name)(victim.x, rows)


def test_an_unknown_access_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean 'white'\?"):
        setting(access="whte")


class Deaf(nn.Module):
    def forward(self, x):
        return torch.zeros(len(x), 2)


class Flat(nn.Module):
    def forward(self, x):
        return (x * 0).flatten(1)[:, :2] + torch.tensor([1.0, 0.0])


def test_a_missing_gradient_is_an_error_and_a_zero_one_is_counted():
    with pytest.raises(NoGradientError, match="input gradient"):
        setting(Deaf()).gradient(torch.zeros(1, 1, 2, 2), torch.tensor([0]))
    victim = setting(Flat())
    victim.gradient(victim.x[:1], torch.tensor([0]))
    assert victim.zero_gradients.tolist() == [1, 0, 0, 0]


class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1), persistent=False)

    def forward(self, x):
        self.count += 1
        return x.flatten(1)


def test_a_model_that_moves_its_buffers_is_an_error():
    with pytest.raises(ModelError, match="state must be the same after as before"), untouched(Moving()) as model:
        model(torch.zeros(1, 2))


def test_modes_and_flags_come_back_even_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="inside"), untouched(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        raise ValueError("inside")
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags


def test_an_exported_program_without_modes_is_accepted():
    program = torch.export.export(nn.Linear(4, 2).eval(), (torch.zeros(16, 4),)).module()
    with untouched(program) as model:
        assert model(torch.zeros(16, 4)).shape == (16, 2)


# --- no_grad outside, and randomised models


def test_gradients_are_there_under_an_outer_no_grad():
    victim, rows = setting(), torch.arange(4)
    want = victim.gradient(victim.x, rows, "margin").gradient
    _, classes = victim.class_gradients(victim.x, rows, torch.ones(4, 1, dtype=torch.int64))
    with torch.no_grad():
        assert torch.equal(victim.gradient(victim.x, rows, "margin").gradient, want)
        assert torch.equal(victim.class_gradients(victim.x, rows, torch.ones(4, 1, dtype=torch.int64))[1], classes)


class Noisy(nn.Module):
    """The margin is 10 (0.5 - mean) plus normal noise per sample; the gradient is scaled by a draw of mean 1."""

    def __init__(self, spread=1.0):
        super().__init__()
        self.spread = spread

    def forward(self, x):
        scale = 1 + self.spread * (torch.rand(len(x), 1) - 0.5)
        gap = 10 * (0.5 - x.flatten(1)) * scale
        margin = gap.mean(1) + self.spread * torch.randn(len(x))
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_a_randomised_model_is_averaged_and_charged_for_every_draw():
    victim, rows = setting(Noisy(), samples=2000, width=16), torch.arange(4)
    found = victim.gradient(victim.x, rows, "margin")
    assert torch.allclose(found.gradient, torch.full_like(victim.x, 2.5), atol=0.1)  # slope 10 over 4 pixels
    assert (found.outputs[:, 0] - 0.5).abs().max() < 0.1 and (found.loss + 0.5).abs().max() < 0.1
    assert (found.margin - (0.5 + 0.6745)).abs().max() < 0.15  # the upper quartile of normal noise
    assert victim.forwards.tolist() == victim.backwards.tolist() == [2000] * 4


QUARTERS = [(1, 0, True), (1, 1, False), (3, 0, True), (3, 1, False), (20, 5, True), (20, 6, False), (4, 1, True)]


@pytest.mark.parametrize(("samples", "right", "fallen"), QUARTERS)
def test_broken_is_what_at_most_a_quarter_of_the_draws_recognises(samples, right, fallen):
    class Fixed(nn.Module):
        looks = 0

        def forward(self, x):
            Fixed.looks += 1
            margin = torch.full((len(x),), 1.0 if Fixed.looks <= right else -1.0)
            return torch.stack([margin, torch.zeros_like(margin)], 1)

    victim = setting(Fixed(), samples=samples)
    victim.margins(victim.x, torch.arange(4))
    assert victim.broken.tolist() == [fallen] * 4


def test_looks_at_a_randomised_model_repeat_themselves_and_differ_from_each_other():
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        victim, rows = setting(Noisy(), samples=3, seed=5), torch.arange(4)
        state = torch.get_rng_state()
        first, gradient = victim.logits(victim.x, rows), victim.gradient(victim.x, rows).gradient
        results.append([first, gradient, victim.logits(victim.x, rows)])
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], results[0][2])
    other = setting(Noisy(), samples=3, seed=6)
    assert not torch.equal(other.logits(other.x, torch.arange(4)), results[0][0])


def test_a_part_goes_on_with_the_looks_of_the_whole():
    victim, rows = setting(Noisy(), samples=2), torch.arange(4)
    first = victim.logits(victim.x, rows)
    part = victim.part(rows)
    second = part.logits(part.x, rows)
    victim.absorb(part)
    third = victim.logits(victim.x, rows)
    assert not torch.equal(first, second) and not torch.equal(second, third) and victim.looks == 3
    assert victim.forwards.tolist() == [6] * 4


def test_one_deterministic_look_and_many_are_the_same():
    once, often, rows = setting(), setting(samples=4), torch.arange(4)
    a, b = (v.gradient(v.x + 0.02, rows) for v in (once, often))
    assert torch.equal(a.margin, b.margin) and torch.allclose(a.gradient, b.gradient)


def test_a_look_without_number_among_the_draws_is_counted_and_breaks_nothing():
    class Sometimes(nn.Module):
        looks = 0

        def forward(self, x):
            Sometimes.looks += 1
            return torch.full((len(x), 2), torch.nan if Sometimes.looks == 2 else 0.0)

    victim = setting(Sometimes(), samples=4)
    victim.margins(victim.x, torch.arange(4))
    assert victim.nonfinite_outputs.tolist() == [1] * 4 and not victim.broken.any()


def test_no_draws_at_all_are_refused():
    with pytest.raises(ConfigError, match="samples must be at least 1, or None, got 0"):
        setting(samples=0)


def test_a_race_books_what_one_question_after_the_other_would():
    class Line(torch.nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0], torch.zeros(len(x))], 1)

    x, y = torch.full((3, 1), 0.9), torch.zeros(3, dtype=torch.int64)
    victim = Victim(Line(), x, y, threat=ThreatModel.parse("linf(1)"), width=8, access="score")
    start = victim.margins(x, torch.arange(3), inside=True)
    points = torch.tensor([0.95, 0.5, 0.2, 0.8, 0.0, 0.1, 0.99])[:, None]
    rows = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    asked, won, margin = victim.race(points, rows, start[rows])
    assert asked.tolist() == [1, 1, 0, 1, 1, 0, 0]
    assert won.tolist() == [1, 3, 4]
    assert torch.equal(margin, points[won][:, 0])
    assert victim.forwards.tolist() == [3, 2, 2]
    assert victim.broken.tolist() == [False, False, True]
    assert torch.equal(victim.best, torch.tensor([0.5, 0.8, 0.0])[:, None])
    with pytest.raises(AttackError):
        Victim(Line(), x, y, threat=ThreatModel.parse("linf(1)"), access="decision").race(points, rows, start[rows])


class WritesLater(nn.Module):
    """Writes to its images from the third pass on, as a model may that does so for some images only."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.passes = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(x.sub_(0.1) if self.passes > 2 else x)


def test_a_model_that_writes_to_its_images_is_refused():
    x, model = torch.rand(4, 1, 4, 4), WritesLater().eval()
    predict(model, x, width=4)
    victim = Victim(model, x, torch.zeros(4, dtype=torch.int64), threat=ThreatModel.parse("linf(0.1)"))
    victim.margins(x, victim.alive())
    with pytest.raises(ModelError, match="left as they are"):
        victim.margins(x, victim.alive())
    with pytest.raises(ModelError, match="left as they are"):
        predict(model, x, width=4)
