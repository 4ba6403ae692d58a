"""Searching in lower precision: copies that agree, and a judge whom no copy can deceive."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robench import zoo
from robench.attacks import _engine
from robench.attacks._cascade import polish, sieve
from robench.attacks._engine import Engine
from robench.devices import exact_arithmetic
from robench.errors import ConfigError
from robench.ops.precision import Autocast, Lowered, bears_channels_last, lowered
from robench.spec import Settings, ThreatModel
from robench.workshop import read_split

THREAT = ThreatModel.parse("linf(0.1)")


class Typed(nn.Module):
    """A net whose code names float32, so that a copy with other parameters cannot run."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.float() * 1.0)


class Rounded(Typed):
    def forward(self, x):
        return self.net((x * 15).round() / 15)


class Shifted(nn.Module):
    """A scout whose label logits are off by a constant: it sees breaks that are none, or climbs a loss without slope."""

    def __init__(self, net: nn.Module, shift: float) -> None:
        super().__init__()
        self.net, self.shift = net, shift

    def forward(self, x):
        logits = self.net(x)
        return logits + self.shift * torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).detach()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return zoo.load("digits-pgd-at").eval()


@pytest.fixture(scope="module")
def digits():
    data = read_split("digits", "test")
    return data.images(torch.arange(64)), data.labels[:64]


def engine(net: nn.Module, digits, scout: nn.Module | None, **more: object) -> Engine:
    x, y = digits
    made = Engine(net, x, y, torch.arange(len(y)), THREAT, **more)
    made.look()
    made.source, made.rough = scout, scout is not None
    made.run("sieve", sieve(10))
    made.run("scaled-ce", polish("scaled_ce", 10))
    return made


@pytest.mark.parametrize("name", ["digits-pgd-at", "digits-vit", "digits-mlp"])
def test_copy_in_bfloat16_agrees_with_its_original(name, digits):
    net, x = zoo.load(name).eval(), digits[0]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    copy = lowered(net, x)
    assert isinstance(copy, Lowered)
    assert {p.dtype for n, p in copy.named_parameters() if "norm" not in n} == {torch.bfloat16}
    found, wanted = copy(x).detach(), net(x).detach()
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, atol=0.03 * float(wanted.abs().max()))
    assert not torch.equal(found, wanted), "nothing was rounded"
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_code_that_names_float32_is_searched_under_autocast(net, digits):
    assert isinstance(lowered(Typed(net), digits[0]), Autocast)


def test_without_a_gradient_to_agree_with_there_is_no_copy(net, digits):
    assert lowered(Rounded(net), digits[0]) is None
    made = Engine(Rounded(net), *digits, torch.arange(64), THREAT, precision="bfloat16")
    made.lower()
    assert made.source is None
    assert not made.rough


@pytest.mark.parametrize("shift", [-50.0, 1.0], ids=["sees breaks everywhere", "is sure of everything"])
def test_what_counts_is_the_model_whatever_the_scout_says(net, digits, shift):
    misled = engine(net, digits, Shifted(net, shift))
    margin = net(misled.best).detach()
    right = margin.argmax(1) == digits[1]
    assert torch.equal(~right, misled.broken), "a break that the model does not confirm, or one that was overlooked"
    assert misled.broken.any()


def test_unconfirmed_samples_are_searched_again_in_float32(net, digits, monkeypatch):
    calls = []
    search = Engine._search

    def noted(self, attack, rows, access, *, exact=False):
        calls.append((exact, len(rows)))
        search(self, attack, rows, access, exact=exact)

    monkeypatch.setattr(_engine.Engine, "_search", noted)
    exact = engine(net, digits, None)
    calls.clear()
    misled = engine(net, digits, Shifted(net, -50.0))
    again = [count for was, count in calls if was]
    assert again, "nothing was searched again"
    assert torch.equal(misled.broken, exact.broken)
    assert torch.equal(misled.best[exact.broken], exact.best[exact.broken])


def test_results_in_bfloat16_do_not_depend_on_what_is_held(net, digits):
    whole, parts = (engine(net, digits, lowered(net, digits[0]), hold=hold) for hold in (64, 7))
    assert torch.equal(whole.best, parts.best)
    assert torch.equal(whole.broken, parts.broken)
    assert {k: v.tolist() for k, v in whole.books.items()} == {k: v.tolist() for k, v in parts.books.items()}


def test_tf32_is_allowed_while_searching_and_never_while_judging(net, digits, monkeypatch):
    seen = {"search": set(), "judge": set()}

    def flags():
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    with exact_arithmetic():
        made = Engine(net, *digits, torch.arange(64), THREAT, precision="tf32")
        made.look()
        made.lower()
        confirm = _engine.judge
        monkeypatch.setattr(_engine, "judge", lambda *a, **k: seen["judge"].add(flags()) or confirm(*a, **k))
        made.run("sieve", lambda victim, draws: seen["search"].add(flags()) or sieve(10)(victim, draws))
        assert flags() == (False, False)
    assert seen == {"search": {(True, True)}, "judge": {(False, False)}}
    assert torch.equal(made.best, engine_after_sieve(net, digits).best), "on a CPU TF32 is float32"


def engine_after_sieve(net: nn.Module, digits) -> Engine:
    made = Engine(net, *digits, torch.arange(64), THREAT)
    made.look()
    made.run("sieve", sieve(10))
    return made


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="bfloat16"):
        Settings(search_precision="bfloat")


# --- images that lie channels-last in memory


def deep(*tail: nn.Module) -> nn.Module:
    """A net of eight convolutions on 3-channel images; 32 x 6 x 6 features come to the tail."""
    torch.manual_seed(0)
    layers = [layer for k in range(8) for layer in (nn.Conv2d(3 if k == 0 else 32, 32, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, *tail).eval()


class Viewed(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Peeping(nn.Module):
    """A layer whose answer depends on the order in memory."""

    def forward(self, x):
        return x.flatten(1) * (1.0 if x.is_contiguous() else -1.0)


class Strict(nn.Module):
    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x):
        if not x.is_contiguous():
            raise self.error("wants contiguous")
        return x.flatten(1)


@pytest.mark.parametrize(
    ("net", "x", "borne"),
    [
        (deep(nn.Flatten(), nn.Linear(32 * 36, 5)), torch.rand(4, 3, 6, 6), True),
        (deep(Viewed(), nn.Linear(32 * 36, 5)), torch.rand(4, 3, 6, 6), False),
        (deep(Peeping(), nn.Linear(32 * 36, 5)), torch.rand(4, 3, 6, 6), False),
        (deep(Strict(AssertionError), nn.Linear(32 * 36, 5)), torch.rand(4, 3, 6, 6), False),
        (deep(Strict(ValueError), nn.Linear(32 * 36, 5)), torch.rand(4, 3, 6, 6), False),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)), torch.rand(4, 3, 6, 6), False),
        (nn.Linear(6, 5), torch.rand(4, 6), False),
    ],
)
def test_only_deep_convolutional_nets_that_do_not_look_at_memory_are_asked_channels_last(net, x, borne):
    assert bears_channels_last(net, x) == borne


def test_channels_last_changes_how_the_model_is_asked_and_not_what_is_found():
    net = deep(nn.Flatten(), nn.Linear(32 * 36, 5))
    x = torch.rand(24, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
    y, asked, threat = net(x).argmax(1), [], ThreatModel.parse("linf(0.01)")
    net.register_forward_pre_hook(lambda _, args: asked.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    found = []
    for lower in (False, True):
        made = Engine(net, x, y, torch.arange(24), threat, width=16)
        made.look()
        if lower:
            made.lower()
        asked.clear()
        made.run("sieve", sieve(10))
        assert any(asked) == lower and not all(asked), "the judge asks as ever"
        found.append(made)
    assert made.channels_last and 0 < int(made.broken.sum()) < 24
    assert torch.equal(found[0].broken, found[1].broken)
    assert all(torch.equal(found[0].books[name], found[1].books[name]) for name in found[0].books)


def test_what_a_model_asked_channels_last_breaks_and_the_judge_does_not_is_searched_again():
    class Split(nn.Module):
        """Wrong at once when asked channels-last, and hard to break otherwise."""

        def forward(self, x):
            lead = 1.0 - 3.0 * (x.flatten(1).mean(1) - 0.5).abs()
            return torch.stack([lead if x.is_contiguous() else lead - 5, 0 * lead], 1)

    x = torch.full((6, 3, 4, 4), 0.5)
    made = Engine(Split(), x, torch.zeros(6, dtype=torch.int64), torch.arange(6), ThreatModel.parse("linf(0.4)"), width=4)
    made.look()
    made.channels_last = True
    made.run("sieve", sieve(20))
    assert made.broken.all()


def test_classes_are_ranked_where_a_rough_copy_takes_clean_images_for_broken(net, digits):
    x, y = digits
    made = Engine(net, x, y, torch.arange(len(y)), THREAT)
    made.look()
    made.source, made.rough = Shifted(net, -100.0), True
    made.rank()
    exact = Engine(net, x, y, torch.arange(len(y)), THREAT)
    exact.look()
    exact.rank()
    assert made.order.shape == exact.order.shape == (len(y), 9)
    assert torch.equal(made.order, exact.order)


def test_rows_say_how_often_a_copy_was_denied(net, digits):
    lying, honest = (engine(net, digits, Shifted(net, shift)) for shift in (-100.0, 0.0))
    assert (lying.unconfirmed > 0).sum() > 40 and not honest.unconfirmed.any()
