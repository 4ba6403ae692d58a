"""Attacks on models without a gradient: through their twin, from their parent, and by queries; none of it is robustness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from robench import zoo
from robench.attacks import _compressed, _protocols
from robench.attacks._cascade import sieve
from robench.attacks._compressed import carried, compressed_union
from robench.attacks._engine import Engine
from robench.bpda import substitute
from robench.compress.backends._onnx import onnx_int8
from robench.errors import AttackError, ConfigError, NoGradientError
from robench.evaluation import _in_memory
from robench.metrics.robust import robust_accuracy, worst_case
from robench.metrics.validity import verdict
from robench.scenarios.evasion import evasion
from robench.scenarios.objects import Objects
from robench.scenarios.sentinel import sentinel
from robench.spec import Artifact, Cell, Context, Ref, Settings, ThreatModel
from robench.thresholds import DEFAULTS
from robench.workshop import Model, read_split

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
THREAT = "linf(0.1)"
ANY = replace(DEFAULTS, power=1.0)
"""Limits for which 16 samples are enough: what is tested here is what such a model must meet, not on how many images."""
UNION, FROM, QUERIES = "compressed-union(source='parent')", "transfer(source='parent')", "square(queries=1000)"
THROUGH = "through(attack='pgd(steps=20)')"


class WithParent(Objects):
    """Objects whose further artifact is the float parent."""

    parent: nn.Module

    def extra(self, position):
        return Model(self.parent, {})


def opened(net, count, parent):
    data = read_split("digits", "test")
    x, y = data.images(torch.arange(count)), data.labels[:count]
    nothing = Artifact("model", Ref("memory"))
    cell = Cell(Ref("memory"), "1", nothing, nothing, settings=Settings(width=16))
    objects = WithParent(cell, Context("", "cpu", 16), Model(net, {}), _in_memory(x, y, 10), fresh=lambda: net)
    object.__setattr__(objects, "parent", parent)
    return objects


@pytest.fixture(scope="module")
def parent():
    return zoo.load("digits-standard")


@pytest.fixture(scope="module")
def deployed(parent):
    return onnx_int8(parent, calibration=read_split("digits", "train").images(torch.arange(64)))


@pytest.fixture(scope="module")
def objects(deployed, parent):
    return opened(deployed, 16, parent)


def lead(rows):
    return pd.DataFrame(rows).assign(model="m", dataset="d", condition="onnx_int8", seed=0, cell="c")


@pytest.fixture(scope="module")
def watched(objects):
    return lead(sentinel(objects, threat=THREAT))


@pytest.fixture(scope="module")
def rows(objects):
    return {a: lead(evasion(objects, attack=a, threat=THREAT)) for a in ("pgd(steps=20)", THROUGH, FROM, QUERIES, UNION)}


def test_no_gradient_is_never_robust(rows, watched):
    """A naive attack breaks nothing; robench calls all of it unknown, and the number invalid."""
    naive = rows["pgd(steps=20)"]
    correct = naive[naive["score_clean"] > 0]
    assert (naive["score_adv"] == naive["score_clean"]).all()
    assert (correct["status"] == "failed").all() and correct["error"].str.startswith("NoGradientError").all()
    assert worst_case(naive)["unknown"].sum() == len(correct) > 12
    assert robust_accuracy(naive).value == 0
    assert verdict(naive, watched).status == "invalid"


class Zeros(nn.Module):
    """What careless code makes of a model without a gradient: zeros in its place."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + 0 * x.flatten(1).sum(1, keepdim=True)


def test_zeros_for_gradients_would_have_been_a_false_robustness(deployed, parent, rows, watched):
    """PGD on zeros reports nine tenths robust; what robench reports of the same model is under a half."""
    careless = opened(Zeros(deployed), 16, parent)
    naive = lead(evasion(careless, attack="pgd(steps=20)", threat=THREAT))
    assert (naive["status"] == "ok").all() and robust_accuracy(naive).value > 0.9
    honest = robust_accuracy(rows[UNION]).value
    assert honest < 0.5 and verdict(rows[UNION], watched, ANY).status == "sound"
    told = verdict(naive, lead(sentinel(careless, threat=THREAT)))
    assert told.status == "suspicious" and "attacks met zero gradients in 100.0 % of their passes" in told.reasons


def test_the_union_breaks_what_each_of_its_parts_breaks(rows):
    union = worst_case(rows[UNION])["robust"]
    assert (rows[UNION]["status"] == "ok").all()
    for part in (THROUGH, FROM, QUERIES):
        assert union.mean() <= worst_case(rows[part])["robust"].mean() < 0.8


def test_only_all_that_an_adversary_has_makes_a_number_sound(rows, watched):
    assert verdict(rows[UNION], watched, ANY).status == "sound"
    assert verdict(pd.concat([rows[THROUGH], rows[FROM], rows[QUERIES]]), watched, ANY).status == "sound"
    assert verdict(rows[UNION], watched).status == "not enough samples"
    missing = {FROM: ("through its twin", "1000 queries"), THROUGH: ("from its parent", "1000 queries")}
    missing[QUERIES] = ("from its parent", "through its twin")
    for attack, parts in missing.items():
        found = verdict(rows[attack], watched)
        told = [reason for reason in found.reasons if reason.startswith("the model has no gradient of its own")]
        assert found.status == "suspicious" and len(told) == 1 and all(part in told[0] for part in parts)


def test_the_sentinel_looks_through_the_twin_and_says_so(watched):
    assert set(watched["gradient"]) == {"substitute"} and (watched["status"] == "ok").all()
    assert watched["twin_agrees"].mean() == 1 and not watched["zero_gradient"].any()
    assert not watched["random"].any() and not watched["batch_dependent"].any()


def test_a_twin_that_predicts_differently_is_suspicious(rows, watched):
    apart = watched.assign(twin_agrees=[0.0] * 2 + [1.0] * (len(watched) - 2))
    assert (
        "the twin that lends its gradient predicts differently on 12.5 % of samples" in verdict(rows[UNION], apart).reasons
    )
    unknown = verdict(rows[UNION], watched.assign(twin_agrees=float("nan")))
    assert "the twin that lends its gradient was not held against the model" in unknown.reasons


def test_a_lent_gradient_may_smooth_the_steps_of_integers(rows, watched):
    """Slopes at an angle whose cosine is 0.8: too far off for a gradient of its own, not for one that is lent."""
    slope, aside = np.ones(len(watched)), np.tile([1.0, -1.0], len(watched) // 2)
    tilted = watched.assign(slope=slope, slope_claimed=0.8 * slope + 0.6 * aside)
    assert verdict(rows[UNION], tilted, ANY).status == "sound"
    assert any("cosine of 0.80 only" in r for r in verdict(rows[UNION], tilted.assign(gradient="own")).reasons)
    assert verdict(rows[UNION], tilted.assign(slope_claimed=0.6 * slope + 0.8 * aside), ANY).status == "suspicious"


def test_results_do_not_depend_on_what_is_held_at_once(objects, deployed, parent, rows):
    other = opened(deployed, 16, parent)
    object.__setattr__(other, "context", Context("", "cpu", 5))
    for attack in (THROUGH, QUERIES.replace("1000", "20")):
        a, b = (pd.DataFrame(evasion(o, attack=attack, threat=THREAT)).drop(columns="seconds") for o in (objects, other))
        pd.testing.assert_frame_equal(a, b)


def engine_of(model, *, surrogate=None, count=8):
    data = read_split("digits", "test")
    x, y, ids = data.images(torch.arange(count)), data.labels[:count], data.ids[:count]
    return Engine(model, x, y, ids, ThreatModel.parse(THREAT), surrogate=surrogate, width=16)


@pytest.fixture
def short(monkeypatch):
    """The union's gradient stages cut down to their first one, and small budgets."""
    monkeypatch.setattr(_compressed, "STEPS", 8)
    monkeypatch.setattr(_compressed, "QUERIES", 40)
    monkeypatch.setattr(_compressed, "dense", lambda engine: engine.run("sieve", sieve(5)))


def test_the_union_names_its_stages_and_what_they_saw(deployed, parent, short):
    engine = engine_of(deployed, surrogate=parent, count=12)
    compressed_union(engine)
    access = {stage.name: stage.access for stage in engine.waterfall}
    assert access["transfer-ce"] == access["transfer-margin"] == "transfer" and access["square"] == "score"
    assert "bpda-sieve" in access and "the model returns no gradient" in engine.escalated


def test_a_model_with_a_gradient_is_searched_itself(parent, short):
    engine = engine_of(parent, surrogate=zoo.load("digits-augmented"))
    compressed_union(engine)
    names = [stage.name for stage in engine.waterfall]
    assert "sieve" in names and not any(name.startswith("bpda") for name in names)


def test_without_a_twin_the_union_fails_after_everything_else(deployed, parent, short):
    class Silent(nn.Module):
        def forward(self, x):
            return deployed(x)

    engine = engine_of(Silent(), surrogate=parent)
    with pytest.raises(NoGradientError):
        compressed_union(engine)
    assert {"transfer-ce", "square"} <= {stage.name for stage in engine.waterfall} and engine.broken.any()


class Noisy(nn.Module):
    """A model whose outputs get a little noise in every pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        out = self.model(x)
        return out + 1e-2 * torch.randn_like(out)


def test_a_random_model_meets_its_parent_and_the_queries_too(parent, short, monkeypatch):
    """Gradients alone (here: none) are not all that an adversary has; what the other stages find holds under draws."""
    monkeypatch.setattr(_protocols, "_averaged", lambda engine, stage: None)
    engine = engine_of(Noisy(parent), surrogate=parent)
    compressed_union(engine)
    access = {stage.name: stage.access for stage in engine.waterfall}
    assert access["eot-transfer-ce"] == access["eot-transfer-margin"] == "transfer" and access["eot-square"] == "score"
    assert "the model's output is random" in engine.escalated and engine.broken.any()


@pytest.mark.slow
def test_a_random_parent_s_draws_repeat_themselves(parent, short, monkeypatch):
    monkeypatch.setattr(_protocols, "_averaged", lambda engine, stage: None)
    again = engine_of(Noisy(parent), surrogate=Noisy(parent))
    compressed_union(again)
    other = engine_of(Noisy(parent), surrogate=Noisy(parent))
    compressed_union(other)
    assert torch.equal(again.best, other.best)


def test_a_union_needs_the_parent(deployed):
    with pytest.raises(AttackError, match="the parent must be a model, got None; name it"):
        compressed_union(engine_of(deployed))


def test_carried_images_are_the_parents_and_judged_on_the_model(parent):
    """A model that is its own parent breaks where Auto-PGD breaks it; one that nothing moves never does."""
    for model, broken in ((parent, True), (Constant(), False)):
        engine = engine_of(model, surrogate=parent)
        engine.run("transfer", carried(engine, "margin", 20), access="transfer")
        right = engine.y == 1 if model is not parent else torch.ones(8, dtype=torch.bool)
        assert bool(engine.broken[right].any()) is broken


class Constant(nn.Module):
    def forward(self, x):
        return torch.arange(10).eq(1).float() + 0 * x.flatten(1).sum(1, keepdim=True)


def test_through_is_the_attack_on_the_substitute_and_restores_the_model(deployed):
    from robench.attacks import pgd, through

    data = read_split("digits", "test")
    x, y = data.images(torch.arange(8)), data.labels[:8]
    found = through(deployed, x, y, threat=THREAT, attack="pgd(steps=5)", seed=3)
    assert torch.equal(found, pgd(substitute(deployed), x, y, threat=THREAT, steps=5, seed=3))
    with pytest.raises(NoGradientError):
        pgd(deployed, x, y, threat=THREAT, steps=5)
    with pytest.raises(ConfigError, match="the norm of ddn must be one of l2, got 'linf'"):
        through(deployed, x, y, threat=THREAT, attack="ddn")
