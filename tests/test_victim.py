import pytest
import torch
from torch import nn

from robench.errors import AttackError, ConfigError, ModelError, NoGradientError
from robench.inference import untouched
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
