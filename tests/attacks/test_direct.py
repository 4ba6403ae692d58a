"""Attacks as a user calls them: a plain module, a threat as text, and a class that the images shall be taken for.

The targeted closed form: the logit of class k is the sum of its own block of pixels. With the gaps z_k − z_t to the target,
away from the box, the nearest image that is taken for t lies at
linf: half the largest gap over the block's size; l1: the largest gap; l2: sqrt(min over a of (a² + Σ (gap_k − a)₊²) / size),
where a is what the target's block gains; l0: as many pixels as the largest gap needs at what a pixel can move.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robench
from robench import attacks, catalog
from robench.errors import AttackError, ConfigError, DataError
from robench.inference import predict
from robench.ops.norms import distance
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.task import TARGETED
from robench.victim import Victim

CLASSES, SIZE, COUNT = 4, 6, 12


class Blocks(nn.Module):
    """Logit k is the sum of pixels k·SIZE to (k + 1)·SIZE, times a weight that scales nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.flatten(1).unflatten(1, (CLASSES, SIZE)).sum(2)


@pytest.fixture(scope="module")
def given() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Model, images around grey, their labels, and another class for each."""
    draws = Draws(2, torch.arange(COUNT))
    levels = draws.uniform("levels", (CLASSES,)).argsort(dim=1).repeat_interleave(SIZE, 1).view(COUNT, 1, 4, 6)
    x = 0.35 + 0.08 * levels + 0.06 * draws.uniform("x", (1, 4, 6))
    net = Blocks().eval()
    y = predict(net, x, width=16).argmax(1)
    return net, x, y, (y + 1 + torch.arange(COUNT) % (CLASSES - 1)) % CLASSES


def nearest(net: nn.Module, x: Tensor, target: Tensor, norm: str) -> Tensor:
    """The closed form, (N,)."""
    logits = predict(net, x, width=16).double()
    gaps = (logits - logits.gather(1, target[:, None])).clamp_min(0)
    if norm == "linf":
        return gaps.amax(1) / (2 * SIZE)
    if norm == "l1":
        return gaps.amax(1)
    low, high = torch.zeros(len(x), dtype=torch.float64), gaps.amax(1)
    for _ in range(60):
        a = (low + high) / 2
        rising = a - (gaps - a[:, None]).clamp_min(0).sum(1) > 0
        low, high = torch.where(rising, low, a), torch.where(rising, a, high)
    return ((low**2 + (gaps - low[:, None]).clamp_min(0).square().sum(1)) / SIZE).sqrt()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_closed_form_is_beaten_by_none_of_many_random_points(given, norm):
    net, x, _, target = given
    radius = nearest(net, x, target, norm)
    for k in range(60):
        noise = Draws(k, torch.arange(COUNT)).normal("n", x.shape[1:])
        towards = noise + 2 * torch.nn.functional.one_hot(target, CLASSES).repeat_interleave(SIZE, 1).view_as(x) - 0.5
        size = distance(torch.zeros_like(x), towards, norm)
        points = x + towards * (0.999 * radius / size)[:, None, None, None].float()
        assert (predict(net, points, width=16).argmax(1) != target).all()


MINIMAL = [
    ("ddn", "l2", {"steps": 200, "loss": "margin"}),
    ("fmn", "l2", {}),
    ("fmn", "linf", {}),
    ("fmn", "l1", {}),
    ("cw", "l2", {"steps": 60}),
    ("ead", "l1", {"steps": 100}),
]


@pytest.mark.parametrize(("name", "norm", "params"), MINIMAL)
def test_targeted_minimal_norms_are_those_of_the_closed_form(given, name, norm, params):
    net, x, y, target = given
    found = getattr(attacks, name)(net, x, y, threat=f"{norm}(inf)", target=target, **params)
    assert torch.equal(predict(net, found, width=16).argmax(1), target)
    ratio = distance(x, found, norm) / nearest(net, x, target, norm)
    assert (ratio > 0.999).all() and ratio.mean() < 1.02 and ratio.max() < 1.06


BUDGET = [("pgd", {"loss": "margin"}), ("pgd", {"loss": "ce"}), ("apgd", {"loss": "margin"}), ("apgd", {"loss": "ce"}),
          ("apgd", {"loss": "scaled_ce"})]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), BUDGET, ids=str)
def test_targeted_budgets_break_what_the_closed_form_says(given, name, params):
    net, x, y, target = given
    needed = nearest(net, x, target, "linf")
    middle = needed.sort().values[COUNT // 2 - 1 : COUNT // 2 + 1].mean()
    found = getattr(attacks, name)(net, x, y, threat=f"linf({float(middle)})", target=target, **params)
    taken = predict(net, found, width=16).argmax(1) == target
    sure = (needed / middle - 1).abs() > 0.03
    assert sure.sum() > 6 and torch.equal(taken[sure], needed[sure] < middle)
    assert (distance(x, found, "linf") <= middle + 1e-6).all()


TARGETED_ONES = [n for n, e in catalog.ATTACKS.items() if e.facts.get("targeted")]
WIDE = {"linf": 0.35, "l2": 1.6, "l1": 8, "l0": 12}
FEW = {"nes": {"queries": 600}, "spsa": {"queries": 600, "rate": 0.05}, "square": {"queries": 300}, "cw": {"steps": 30},
       "ead": {"steps": 30}, "sparse_rs": {"queries": 300}, "sigma_zero": {"steps": 100}}  # fmt: skip


@pytest.mark.parametrize("name", TARGETED_ONES)
def test_every_targeted_attack_leads_to_its_target_and_never_calls_another_class_a_success(given, name):
    net, x, y, target = given
    norm = catalog.ATTACKS[name].facts["norms"][0]
    params = {**FEW.get(name, {}), **({"surrogate": net} if name == "transfer" else {})}
    found = getattr(attacks, name)(net, x, y, threat=f"{norm}({WIDE[norm]})", target=target, **params)
    taken = predict(net, found, width=16).argmax(1) == target
    assert (distance(x, found, norm) <= WIDE[norm] + 1e-6).all()
    assert taken.double().mean() >= {"noise": 0, "fgsm": 0, "square": 0.6}.get(name, 0.9)
    victim = Victim(net, x, target, threat=ThreatModel.parse(f"{norm}({WIDE[norm]})"), task=TARGETED)
    seeds = Draws(0, torch.arange(COUNT))
    assert torch.equal(catalog.ATTACKS[name].load()(victim, x, target, threat=victim.threat, seeds=seeds, **params), found)
    assert torch.equal(victim.broken | ~taken, torch.ones(COUNT, dtype=torch.bool))


def test_a_tie_with_the_target_is_no_success():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.5], [2.0, 1.0, 0.0]])
    target = torch.tensor([1, 1, 1])
    assert (TARGETED.margin(logits, target) <= 0).tolist() == [False, True, False]
    assert TARGETED.score(logits, target).tolist() == [1.0, 0.0, 1.0]
    assert TARGETED.broken(TARGETED.score(logits, target)).tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["deepfool", "fab", "fab_t", "apgd_t", "hop_skip_jump"])
def test_attacks_without_a_targeted_form_say_so(given, name):
    net, x, y, target = given
    with pytest.raises(ConfigError, match=f"the target of {name} must be None, got 'classes'"):
        getattr(attacks, name)(net, x, y, threat="linf(0.1)", target=target)


def test_a_loss_without_a_targeted_form_is_refused(given):
    net, x, y, target = given
    with pytest.raises(ConfigError, match="a loss of targeted classification"):
        attacks.apgd(net, x, y, threat="linf(0.1)", target=target, loss="dlr")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"threat": "l0(3)"}, ConfigError, "the norm of pgd must be one of linf, l2, got 'l0'"),
        ({"threat": "linf(8)"}, ConfigError, "did you mean 8/255"),
        ({"x": 2.0}, DataError, "images must be at least one, all finite and in"),
        ({"x": float("nan")}, DataError, "images must be at least one, all finite and in"),
        ({"y": 4}, DataError, r"labels must be \(12,\) in 0..3, got '\(12,\) in 4..4'"),
        ({"target": -1}, DataError, r"targets must be \(12,\) in 0..3"),
        ({"target": "y"}, DataError, "targets must be other classes than the labels"),
    ],
)
def test_bad_input_is_refused_before_anything_is_attacked(given, change, error, text):
    net, x, y, _ = given
    told = {"x": x, "y": y, "threat": "linf(0.1)"}
    for key, value in change.items():
        full = torch.full_like(x if key == "x" else y, 0 if isinstance(value, str) else value)
        told[key] = {"threat": value, "target": y if value == "y" else full}.get(key, full)
    with pytest.raises(error, match=text):
        attacks.pgd(net, told.pop("x"), told.pop("y"), **told)


ASKING = [n for n, e in catalog.ATTACKS.items() if "queries" in e.parameters]


@pytest.mark.parametrize("name", ASKING)
def test_a_query_budget_of_nothing_is_refused_alone_and_in_an_evaluation(given, name):
    net, x, y, _ = given
    threat = f"{catalog.ATTACKS[name].facts['norms'][0]}(0.1)"
    with pytest.raises(ConfigError, match="queries"):
        getattr(attacks, name)(net, x, y, threat=threat, queries=0)
    with pytest.raises(ConfigError, match="queries"):
        robench.evaluate(net, x, y, threat=threat, attacks=[f"{name}(queries=0)"])


def test_dlr_with_too_few_classes_is_refused_in_an_evaluation():
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).eval()
    x = Draws(1, torch.arange(6)).uniform("x", (1, 4, 6))
    y = predict(net, x, width=16).argmax(1)
    with pytest.raises(ConfigError, match="the classes for dlr with a target must be at least 4, got 3"):
        robench.evaluate(net, x, y, threat="linf(0.01)", attacks=["apgd_t(loss='dlr')"])


def test_help_shows_what_a_user_may_say_and_a_victim_goes_straight_through(given):
    net, x, y, _ = given
    names = list(inspect.signature(attacks.apgd).parameters)
    assert names[:7] == ["model", "x", "y", "threat", "seed", "seeds", "target"] and "steps" in names
    threat = ThreatModel.parse("linf(0.1)")
    victim = Victim(net, x, y, threat=threat)
    found = attacks.pgd(victim, x, y, threat=threat, steps=3)
    assert torch.equal(found, attacks.pgd(net, x, y, threat="linf(0.1)", steps=3)) and victim.forwards.sum() > 0
    assert not torch.equal(found, attacks.pgd(net, x, y, threat="linf(0.1)", steps=3, seed=1))
    with pytest.raises(AttackError, match="the surrogate must be a model"):
        attacks.transfer(net, x, y, threat="linf(0.1)")


def test_spatial_attacks_and_patches_are_there_too(given):
    assert callable(attacks.spatial_grid) and callable(attacks.spatial_random)
    assert callable(attacks.patch_images) and callable(attacks.patch_universal)
    with pytest.raises(AttributeError, match="no attribute 'autoattack'"):
        attacks.autoattack  # noqa: B018


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_multitargeted_is_apgd_t_on_the_margin_and_exact_on_linear_models(classes):
    """Gowal et al., 2019: every wrong class in turn, by the difference of two logits; the closed form is linear in eps."""
    weight = torch.randn(classes, 24, generator=torch.Generator().manual_seed(classes)) * 0.5
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, classes, bias=False)).eval()
    net[1].weight = nn.Parameter(weight)
    x = Draws(3, torch.arange(30)).uniform("x", (1, 4, 6)) * 0.4 + 0.3
    y = predict(net, x, width=16).argmax(1)
    logits = predict(net, x, width=16).double()
    gaps = (logits.gather(1, y[:, None]) - logits) / (weight[y][:, None] - weight).abs().sum(2).double()
    needed = gaps.scatter(1, y[:, None], torch.inf).amin(1)
    for eps in needed.quantile(torch.tensor([0.3, 0.7], dtype=torch.float64)).tolist():
        found = attacks.apgd_t(net, x, y, threat=f"linf({eps})", loss="margin", targets=classes - 1, steps=20)
        broken = predict(net, found, width=16).argmax(1) != y
        sure = (needed / eps - 1).abs() > 1e-3
        assert torch.equal(broken[sure], needed[sure] < eps) and 0 < broken.sum() < 30


def test_what_the_readme_shows_of_attacks_alone_runs(given):
    net, x, y, target = given
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").replace("queries=1000", "queries=10")
    lines = [k for k in text.splitlines() if k.startswith(("from robench.attacks import", "x_adv = "))]
    assert len(lines) == 4
    known = {"model": net, "x": x, "y": y, "wanted": target}
    for line in lines:
        exec(line, known)
    assert torch.equal(predict(net, known["x_adv"], width=16).argmax(1), target)


@pytest.mark.parametrize(("convolutions", "last"), [(8, True), (2, False)])
def test_the_images_layout_does_not_choose_the_models(convolutions, last):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3 if k == 0 else 4, 4, 3, padding=1) for k in range(convolutions)]
    net, seen = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 3)).eval(), []
    x = Draws(0, torch.arange(12)).uniform("x", (3, 6, 6))
    y = predict(net, x, width=16).argmax(1)
    found = []
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        handle = layers[0].register_forward_pre_hook(
            lambda _, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
        )
        found.append(attacks.apgd(net, images, y, threat="l2(0.5)", steps=4))
        handle.remove()
        assert seen[-1] == last
    assert torch.equal(*found)
