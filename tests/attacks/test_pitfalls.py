"""Faults that were found in other attack libraries, by their number in our list: each has a test that keeps it out."""

from __future__ import annotations

import copy
import inspect
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robench
from robench import catalog
from robench.attacks import _fgsm, _protocols
from robench.errors import ConfigError, DataError
from robench.inference import fingerprint, predict
from robench.judge import judge
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

ELSEWHERE = {
    5: "test_promises.py::test_three_kills_leave_the_same_table",
    8: "attacks/test_minimal.py::test_pitfall_8_images_with_only_black_and_white_pixels_are_broken",
    11: "test_evidence.py::test_8bit_images_lie_in_the_ball",
    20: "attacks/test_apgd.py::test_every_iterate_is_autoattacks_where_nothing_breaks",
    28: "attacks/test_minimal.py::test_pitfall_28_boundary_points_are_misclassified_in_other_company_too",
    31: "test_cli.py::test_options_replace_attacks_threats_and_scenarios",
}
"""Pitfalls with a test where the code's own tests are."""

NO_ATTACK = {25: "latency on a GPU", 26: "sizes of ImageNet-C images", 30: "captum's DeepLift and GradientShap"}
"""Pitfalls that concern no attack; their tests are those of what they concern, where robench has it."""

LINF = "linf(0.05)"
GRADIENT = ["fgsm", "pgd(steps=5)", "apgd(steps=5)", "apgd_t(steps=5)", "fab_t(steps=5)", "fmn(steps=10)", "deepfool"]


def build(classes: int = 5) -> nn.Sequential:
    generator = torch.Generator().manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


def case(net: nn.Module | None = None, count: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    net = net or build()
    x = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(3))
    return net, x, predict(net, x, width=64).argmax(1)


class Sloped(torch.autograd.Function):
    """Rounding to quarters, with a factor as its slope."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return (x * 4).round() / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class Without(nn.Module):
    """The inner net behind a step that gives no slope, or one that is no number."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(Sloped.apply(x, self.factor))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Protocols with few steps and queries."""
    plain, most = _protocols.plain, {"steps": 10, "queries": 20}
    short = lambda f, **params: plain(f, **{k: min(v, most[k]) if k in most else v for k, v in params.items()})  # noqa: E731
    monkeypatch.setattr(_protocols, "plain", short)


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_the_tests_elsewhere_are_there(test):
    name, _, function = test.partition("::")
    assert f"def {function}(" in (Path(__file__).parents[1] / name).read_text(encoding="utf-8")


def test_every_pitfall_has_a_test_or_concerns_no_attack():
    text = Path(__file__).read_text(encoding="utf-8")
    names = re.findall(r"def test_pitfalls?_((?:\d+_(?:and_)?)+)", text)
    named = {int(n) for name in names for n in re.findall(r"\d+", name)}
    assert not named & set(NO_ATTACK)
    assert named | set(ELSEWHERE) | set(NO_ATTACK) == set(range(1, 32))


def test_pitfall_1_what_is_called_autoattack_runs_autoattacks_budgets(monkeypatch):
    made = {}
    monkeypatch.setattr(_protocols, "plain", lambda f, **params: made.update({f.__name__: params}) or (lambda v, d: None))
    net, x, y = case()
    robench.attack(net, x, y, threat=LINF, protocol="autoattack-standard")
    assert made["apgd"]["steps"] == made["apgd_t"]["steps"] == made["fab_t"]["steps"] == 100
    assert made["apgd_t"]["targets"] == made["fab_t"]["targets"] == 9 and made["square"]["queries"] == 5000


def test_pitfall_2_nothing_else_may_bear_autoattacks_name():
    net, x, y = case()
    assert all(e.facts.get("protocol") for name, e in catalog.ATTACKS.items() if name.startswith("autoattack"))
    for name in ("art:AutoAttack", "autoattack-standard(steps=10)", "autoattack"):
        with pytest.raises(ConfigError):
            robench.attack(net, x, y, threat=LINF, protocol=name)


@pytest.mark.parametrize("returned", [None, "images", torch.zeros(0)])
def test_pitfall_3_an_attack_that_returns_nothing_gives_no_number(monkeypatch, returned):
    net, x, y = case()
    monkeypatch.setattr(_fgsm, "fgsm", lambda *a, **k: returned)
    with pytest.raises((AttributeError, RuntimeError)):
        robench.evaluate(net, x, y, threat="linf(0)", attacks=["fgsm"])


@pytest.mark.parametrize("attack", ["pgd(steps=5)", "square(queries=10)", "robench-standard"])
def test_pitfalls_4_7_16_and_23_a_model_in_train_mode_is_measured_in_eval_mode_and_given_back(attack):
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), *build())
    net[0].running_mean.fill_(0.4), net[0].running_var.fill_(0.5)
    net.eval()
    _, x, y = case(net)
    expected = robench.evaluate(net, x, y, threat=LINF, attacks=[attack]).rows.drop(columns="seconds")
    net.train()
    before = fingerprint(net)
    found = robench.evaluate(net, x, y, threat=LINF, attacks=[attack]).rows.drop(columns="seconds")
    assert found.equals(expected) and (found["score_clean"] == 1).all()
    assert fingerprint(net) == before and all(module.training for module in net.modules())


def test_pitfall_6_the_seed_is_an_argument_and_no_global_state_matters():
    net, x, y = case(count=4)
    found = []
    for noise in (1, 2):
        random.seed(noise), np.random.seed(noise), torch.manual_seed(noise)
        state = torch.get_rng_state()
        found.append(robench.attack(net, x, y, threat=LINF, seed=3))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0].x_adv, found[1].x_adv)
    assert not torch.equal(found[0].x_adv, robench.attack(net, x, y, threat=LINF, seed=4).x_adv)


@pytest.mark.parametrize("attack", GRADIENT)
def test_pitfall_9_a_gradient_that_is_no_number_breaks_nothing(attack):
    """No image of the ball is rounded to another one here, so whatever is called broken was not looked at."""
    net, x, _ = case()
    net, x = Without(net, float("nan")).eval(), (x * 4).round() / 4
    y = predict(net, x, width=64).argmax(1)
    found = robench.evaluate(net, x, y, threat=LINF, attacks=[attack])
    assert (found.rows["score_adv"] == 1).all() and torch.isfinite(found.x_adv).all()
    assert (found.rows["nonfinite_gradients"] > 0).all() and not found.validity.sound


@pytest.mark.parametrize("attack", GRADIENT)
def test_pitfalls_10_and_21_without_a_slope_images_stay_finite_and_the_verdict_says_so(attack):
    net, x, _ = case()
    net = Without(net, 0.0).eval()
    y = predict(net, x, width=64).argmax(1)
    found = robench.evaluate(net, x, y, threat="linf(0.2)", attacks=[attack])
    assert torch.isfinite(found.x_adv).all()
    assert (found.rows["zero_gradients"] > 0).all() and not found.validity.sound
    noise = robench.evaluate(net, x, y, threat="linf(0.2)", attacks=["noise(draws=50)", attack])
    assert noise.robust_accuracy.value <= found.robust_accuracy.value


def test_pitfalls_12_and_27_images_in_other_ranges_or_in_half_precision_are_refused():
    net, x, y = case()
    for wrong in ((x - 0.5) / 0.25, x * 255, x.half()):
        for call in (robench.attack, robench.evaluate):
            with pytest.raises(DataError):
                call(net, wrong, y, threat=LINF)


def test_pitfall_13_the_first_success_is_kept_whatever_is_asked_later():
    net, x, y = case()
    victim = Victim(net, x, y, threat=ThreatModel.parse("linf(1)"))
    rows, other = torch.arange(len(x)), torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    margin = victim.margins(other, rows)
    assert 0 < (margin <= 0).sum() < len(x)
    for point in (x, other.flip(0), x):
        victim.margins(point, rows)
    hit = margin <= 0
    assert torch.equal(victim.result()[hit], other[hit]) and victim.broken[hit].all()


@pytest.mark.parametrize("attack", [*GRADIENT, "square(queries=50)"])
def test_pitfall_13_what_an_attack_met_on_its_way_is_what_it_returns(attack, monkeypatch):
    """Every success that the victim booked is a success of the returned image."""
    net, x, y = case()
    ref, threat = catalog.ATTACKS.resolve(attack), ThreatModel.parse("linf(0.15)")
    victim, record = Victim(copy.deepcopy(net), x, y, threat=threat), Victim._record
    met = torch.zeros(len(x), dtype=torch.bool)

    def recorded(self, points, rows, margin, *rest):
        met[self.parents[rows[(margin <= 0) & self.ball[rows].contains(points)]]] = True
        record(self, points, rows, margin, *rest)

    monkeypatch.setattr(Victim, "_record", recorded)
    found = catalog.ATTACKS[ref.name].load()(victim, x, y, threat=threat, seeds=Draws(0, torch.arange(12)), **ref.kwargs)
    assert met.any()
    assert judge(net, x, y, x_adv=found, threat=threat).broken()[met].all()


@pytest.mark.parametrize("eps", ["8/255", "0.3", "0.031"])
def test_pitfall_14_a_radius_is_met_exactly_in_float64(eps):
    net, x, y = case()
    radius = ThreatModel.parse(f"linf({eps})").eps
    for attack in ("pgd(steps=5)", "apgd(steps=5)", "square(queries=20)", "robench-standard"):
        found = robench.evaluate(net, x, y, threat=f"linf({eps})", attacks=[attack])
        assert (found.x_adv.double() - x.double()).abs().max() <= radius
        assert not found.rows["projected"].any()


@pytest.mark.parametrize("attack", [*GRADIENT, "robench-standard"])
def test_pitfalls_15_and_23_no_parameter_holds_a_gradient_afterwards(attack):
    net, x, y = case()
    net[3].weight.requires_grad_(False)
    robench.evaluate(net, x, y, threat=LINF, attacks=[attack])
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, True, False, True]


@pytest.mark.parametrize("attack", ["pgd(steps=5)", "fmn(steps=5)", "square(queries=5)", "robench-standard"])
def test_pitfalls_17_and_22_a_clean_mistake_is_no_success_and_a_corrected_one_neither(attack):
    net, x, right = case()
    y = (right + 1) % 5
    rows = robench.evaluate(net, x, y, threat=LINF, attacks=[attack]).rows
    assert (rows["score_clean"] == 0).all() and (rows["score_adv"] == 0).all()
    assert (rows["distance"] == 0).all() and (rows["backwards"] == 0).all() and (rows["forwards"] <= 3).all()


def test_pitfall_18_labels_are_asked_for_and_images_stay_in_the_box():
    for call in (robench.attack, robench.evaluate):
        assert inspect.signature(call).parameters["y"].default is inspect.Parameter.empty
    net, x, y = case()
    x = (2 * x - 0.5).clamp(0, 1)
    found = robench.evaluate(net, x, y, threat="linf(0.3)", attacks=["pgd(steps=5)", "robench-standard"])
    assert ((found.x_adv >= 0) & (found.x_adv <= 1)).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_pitfall_19_few_classes_do_not_stop_autoattack(classes):
    net, x, y = case(build(classes))
    found = robench.attack(net, x, y, threat="linf(0.3)", protocol="autoattack-standard")
    assert set(found.rows["status"]) == {"ok"} and not found.robust.all()


def test_pitfall_24_equal_images_are_counted_apart():
    net, x, y = case(count=4)
    twice = torch.cat([x, x, x[:1]])
    rows = robench.evaluate(net, twice, torch.cat([y, y, y[:1]]), threat=LINF, attacks=["square(queries=20)"]).rows
    single = robench.evaluate(net, x, y, threat=LINF, attacks=["square(queries=20)"]).rows
    assert rows["forwards"][:4].tolist() == single["forwards"].tolist() and rows["forwards"].max() <= 21
    assert (rows["forwards"] > 0).all()


def test_pitfall_27_what_only_a_copy_in_low_precision_mistakes_is_not_broken(monkeypatch):
    """Logits that differ by less than bfloat16 can tell: the copy sees a tie, the model does not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).eval()
    with torch.no_grad():
        net[1].weight.zero_(), net[1].bias.copy_(torch.tensor([1.001, 1.0]))
    _, x, y = case(net)
    low = copy.deepcopy(net).bfloat16()

    def searched(victim, x, y, **told):
        victim.model = nn.Sequential(Lowered(low))
        victim.margins(x, victim.alive())
        assert victim.broken.all()
        return victim.result()

    monkeypatch.setattr(_fgsm, "fgsm", searched)
    rows = robench.evaluate(net, x, y, threat=LINF, attacks=["fgsm"]).rows
    assert (rows["score_adv"] == 1).all() and not rows["broken"].any() and set(rows["status"]) == {"ok"}


class Lowered(nn.Module):
    """A copy in bfloat16 that takes and returns float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.bfloat16()).float()


def test_pitfall_29_a_radius_is_kept_as_it_was_typed():
    net, x, y = case()
    rows = robench.evaluate(net, x, y, threat="linf(8/255)", attacks=["fgsm"]).rows
    assert set(rows["threat"]) == {"linf(8/255)"} and set(rows["eps"]) == {8 / 255}
    with pytest.raises(ConfigError, match="did you mean 8/255"):
        robench.attack(net, x, y, threat="linf(8)")
