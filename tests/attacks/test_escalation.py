"""Protocols that escalate by themselves: what the probe tells, what follows from it, and that honest models notice none."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robench
from robench import catalog
from robench.attacks import _escalation, _protocols, _rand
from robench.attacks._engine import Engine
from robench.attacks._escalation import COPIES, PROBED, Flags, Smoothed, begin
from robench.bpda import bridged
from robench.errors import ModelError, NoGradientError
from robench.inference import predict
from robench.judge import judge
from robench.spec import ThreatModel
from robench.thresholds import ASTRAY, UNBRIDGED
from robench.victim import BOOKS, Victim

SIDE, COUNT, CLASSES = 6, 16, 4
EPS = "linf(0.08)"


def net() -> nn.Sequential:
    """A small ReLU net with fixed random weights."""
    generator = torch.Generator().manual_seed(1)
    found = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 24), nn.ReLU(), nn.Linear(24, CLASSES)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return found.requires_grad_(False)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.eval()


class Rounded(Around):
    """Pixels rounded to 17 grey values, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x * 16).round() / 16)


class Noisy(Around):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.02 * torch.randn(x.shape))


class Sealed(Around):
    """Through numpy: no gradient, and none that could be substituted."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.from_numpy(np.asarray(x.detach().tolist(), dtype=np.float32)))


class Flat(Around):
    """Logits in fine steps: every gradient is zero, no layer is to blame that a stand-in would not fit."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).mul(50).round() / 50 + 0 * x.sum()


def images(count: int = COUNT) -> Tensor:
    grey = torch.randint(2, 15, (count, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    return grey.float() / 16


def engine(model: nn.Module, threat: str = EPS, **told) -> Engine:
    x = images()
    y, ids = predict(net(), x, width=64).argmax(1), torch.arange(len(x)) * 7 + 5
    return Engine(model, x, y, ids, ThreatModel.parse(threat), **told)


def run(model: nn.Module, threat: str = EPS, protocol=_protocols.robench_standard, **told) -> Engine:
    found = engine(model, threat, **told)
    protocol(found)
    return found


def same(first: robench.evaluation.Attacked, other: robench.evaluation.Attacked) -> None:
    rows = [found.rows.drop(columns="seconds") for found in (first, other)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)


def stages(found: Engine) -> list[str]:
    return [stage.name for stage in found.waterfall]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Every stage with a small budget."""
    most = {"steps": 10, "queries": 30}

    def less(make):
        return lambda function, **told: make(function, **{k: min(v, most[k]) if k in most else v for k, v in told.items()})

    for name in ("plain", "once"):
        monkeypatch.setattr(_protocols, name, less(getattr(_protocols, name)))
    ladder, polish = _protocols.ladder, _protocols.polish
    sieve, diversified = _protocols.sieve, _protocols.diversified
    monkeypatch.setattr(_protocols, "ladder", lambda ranks, steps=40, *, diverse: ladder(2, 3, diverse=diverse))
    monkeypatch.setattr(_protocols, "polish", lambda loss: polish(loss, 3))
    monkeypatch.setattr(_protocols, "sieve", lambda: sieve(8))
    monkeypatch.setattr(
        _protocols, "diversified", lambda *turns, **m: diversified(*turns[:2], **{**m, "before": 1, "steps": 3})
    )
    monkeypatch.setattr(_rand, "SAMPLES", 6)


# --- honest models


@pytest.mark.parametrize("threat", ["linf(0.03)", "l2(0.15)", "l1(0.5)"])
def test_an_honest_model_is_searched_as_if_there_were_no_probe(threat, monkeypatch):
    found = run(net(), threat)
    assert found.escalated in ([], [_protocols.SQUARE_BROKE]) and "probe" in stages(found)
    monkeypatch.setattr(_protocols, "begin", lambda engine: engine.look() or Flags())
    plain = run(net(), threat)
    assert torch.equal(found.best, plain.best) and torch.equal(found.broken, plain.broken)
    assert [s for s in stages(found) if s != "probe"] == stages(plain)
    probe = found.waterfall[stages(found).index("probe")]
    charged = {name: found.books[name] - plain.books[name] for name in BOOKS}
    looked = min(PROBED, int(predict(net(), images(), width=64).argmax(1).eq(found.y).sum()))
    assert (probe.forwards, probe.backwards, probe.broken) == (39 * looked, 6 * looked, 0)
    assert int(charged["forwards"].sum()) == probe.forwards and int(charged["backwards"].sum()) == probe.backwards
    assert all(not charged[name].any() for name in ("zero_gradients", "nonfinite_gradients", "nonfinite_outputs"))


def test_a_model_without_a_correct_image_ends_without_an_error():
    x = images()
    wrong = (predict(net(), x, width=64).argmax(1) + 1) % CLASSES
    found = Engine(net(), x, wrong, torch.arange(len(x)), ThreatModel.parse(EPS))
    _protocols.robench_standard(found)
    assert found.broken.all() and not found.escalated


@pytest.mark.parametrize("name", ["robench-standard", "robench-deep"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_protocol_declares_in_which_norms_it_lowers_the_precision(monkeypatch, name, norm):
    lowered = []
    monkeypatch.setattr(Engine, "lower", lambda engine: lowered.append(engine.threat.norm))
    _protocols._escalating(engine(net(), f"{norm}(0.03)"), lambda engine: None, lambda engine: None)
    assert (norm in catalog.ATTACKS[name].facts["lowers"]) == (lowered == [norm])


def test_a_precision_that_a_protocol_ignores_is_told(caplog):
    x = images(2)
    told = {"threat": "l1(0.1)", "protocol": "autoattack-standard", "search_precision": "bfloat16"}
    robench.attack(net(), x, (predict(net(), x, width=64).argmax(1) + 1) % CLASSES, **told)
    assert "autoattack-standard at l1(0.1) searches in float32, not in bfloat16" in caplog.text


# --- gradients that mislead


def test_rounding_falls_to_substitute_gradients_and_the_rows_say_so():
    model, bare = Rounded(net()), run(net())
    ordinary = engine(model)
    ordinary.look()
    _protocols.dense(ordinary)
    before, found = ordinary.broken, run(model)
    assert found.broken.sum() >= bare.broken.sum() - 1 > before.sum() + 4
    assert any("zero gradients" in why for why in found.escalated)
    assert any("substitute gradients for" in why and "round" in why for why in found.escalated)
    took = {stages(found)[s] for s in found.stage[found.broken & ~before].tolist()}
    assert took and all(name.startswith(("bpda", "transfer-", "smooth-", "square-")) for name in took)
    access = {stage.name: stage.access for stage in found.waterfall}
    assert {"white"} == {a for n, a in access.items() if n.startswith(("bpda", "smooth"))}
    assert {"transfer"} == {a for n, a in access.items() if n.startswith("transfer")} and access["square-all"] == "score"
    verdicts = judge(model, found.x, found.y, x_adv=found.best, threat=found.threat)
    assert torch.equal(verdicts.broken(), found.broken) and not verdicts.projected.any()


def test_rows_carry_why_and_what_the_stage_saw_whatever_the_batch():
    x = images(8)
    y = predict(net(), x, width=64).argmax(1)
    first, other = (robench.attack(Rounded(net()), x, y, threat=EPS, batch_size=size) for size in (256, 5))
    same(first, other)
    assert "zero gradients" in first.rows["escalated"].unique().item() and first.escalated
    broken = first.rows[first.rows["broken"].astype(bool)]
    assert broken["stage_access"].isin(["white", "transfer", "score"]).all()
    assert (first.rows.loc[first.rows["stage"] == "", "stage_access"] == "").all()
    assert any(note.startswith("escalated: zero gradients") for note in first.validity.notes)


class Alone(Rounded):
    """It cannot be copied."""

    def __deepcopy__(self, memo):
        raise AttributeError("one of a kind")


def test_a_copy_that_cannot_be_made_is_a_reason_of_the_verdict():
    x = images(8)
    found = robench.attack(Alone(net()), x, predict(net(), x, width=64).argmax(1), threat=EPS)
    told = [why for why in found.escalated if why.startswith(UNBRIDGED)]
    assert len(told) == 1 and "one of a kind" in told[0] and (found.rows["status"] == "ok").all()
    assert found.validity.status == "suspicious" and told[0] in found.validity.reasons
    assert not any(stage.startswith("bpda") for stage in found.waterfall["name"])


def test_where_one_of_two_copies_fails_it_is_told(monkeypatch):
    def half(model, x, *, thorough):
        if thorough:
            raise ModelError("no such; operator")
        return bridged(model, x)

    monkeypatch.setattr(_escalation, "bridged", half)
    found = engine(Rounded(net()))
    flags = begin(found)
    assert [source.name for source in flags.sources] == ["bpda"]
    assert f"{_escalation.PARTLY} (ModelError: no such, operator)" in found.escalated


def test_a_fault_of_our_own_is_not_taken_for_a_model_that_cannot_be_copied(monkeypatch):
    def faulty(model, x, *, thorough):
        raise TypeError("an argument too many")

    monkeypatch.setattr(_escalation, "bridged", faulty)
    x = images(8)
    rows = robench.attack(Rounded(net()), x, predict(net(), x, width=64).argmax(1), threat=EPS).rows
    assert rows.loc[~rows["broken"].astype(bool), "error"].str.contains("an argument too many").all()
    assert (rows["status"] == "failed").any()


def test_a_model_that_no_gradient_can_be_had_of_is_searched_without_and_stays_unknown():
    found = engine(Sealed(net()))
    with pytest.raises(NoGradientError):
        _protocols.robench_standard(found)
    assert [n for n in stages(found) if n not in ("clean", "probe")] == ["square-all"]
    assert found.escalated == ["the model returns no gradient"]
    rows = robench.attack(Sealed(net()), found.x, found.y, threat=EPS).rows
    left = rows["broken"].eq(False)
    assert (rows.loc[left, "status"] == "failed").all() and rows.loc[left, "error"].str.contains("NoGradientError").all()
    assert rows.loc[~left, "stage"].isin(["square-all"]).all()


def test_what_another_model_leads_to_counts_only_as_the_model_itself_sees_it():
    """A source that calls everything broken breaks nothing; the model as its own source changes nothing."""
    model = net()

    class Liar(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).flip(1)

    found = engine(model)
    found.look()
    with found.searching(Liar(model), "liar-"):
        found.run("sieve", _protocols.sieve())
    margins = Victim(model, found.x, found.y, threat=found.threat).margins(found.best, torch.arange(COUNT))
    assert torch.equal(margins <= 0, found.broken) and torch.equal(margins, found.best_margin)
    assert stages(found)[-1] == "liar-sieve" and found.source is None and found.prefix == ""
    own, same = engine(model), engine(model)
    own.run("sieve", _protocols.sieve())
    with same.searching(net(), ""):
        same.run("sieve", _protocols.sieve())
    assert torch.equal(own.broken, same.broken) and torch.equal(own.best, same.best)


def test_a_smoothed_model_is_the_mean_over_its_noise_and_is_charged_for_it():
    threat = ThreatModel.parse(EPS)
    smooth = Smoothed(net(), torch.Size((1, SIDE, SIDE)), threat=threat, seed=0)
    x = images(3)
    slow = torch.stack([net()((x + one).clamp(0, 1)) for one in smooth.noise]).mean(0)
    assert torch.allclose(smooth(x), slow, atol=1e-6) and len(smooth.noise) == COPIES
    assert 0.02 < float(smooth.noise.std()) < 0.06 and float(smooth.noise.sum(0).abs().max()) < 1e-6
    found = engine(net())
    with found.searching(smooth, "smooth-"):
        found.run("look", lambda victim, draws: victim.clean_logits())
    assert (found.books["forwards"] >= COPIES + 1).all() and (found.books["forwards"] <= COPIES + 3).all()


class Decoy(Around):
    """The decision, and a faint gradient that finite differences confirm."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        hard = nn.functional.one_hot(logits.argmax(1), CLASSES).float()
        return 10 * hard + 1e-2 * x.flatten(1)[:, :CLASSES]


def test_survivors_that_only_square_breaks_ask_for_substitutes_too(monkeypatch):
    monkeypatch.setattr("robench.attacks._escalation.diagnose", lambda *args, **told: [])
    found = run(Decoy(net()), "linf(0.15)")
    assert found.escalated[0] == _protocols.SQUARE_BROKE and any("argmax" in why for why in found.escalated)
    assert {"square-2000", "bpda-thorough-sieve"} <= set(stages(found))
    assert found.broken.sum() >= run(net(), "linf(0.15)").broken.sum() - 1


def test_gradients_that_lead_few_samples_astray_ask_for_substitutes_too():
    found = run(Decoy(net()), "linf(0.15)")
    assert "gradients lead astray on 2 of 16 samples" in found.escalated
    assert any("argmax" in why for why in found.escalated)
    assert {"bpda-thorough-sieve", "square-all"} <= set(stages(found))
    assert found.broken.sum() >= run(net(), "linf(0.15)").broken.sum() - 1


def test_a_gradient_of_zeros_that_share_their_memory_is_no_error():
    class Summed(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.detach()) + 0 * x.sum()

    found = run(Summed(net()))
    assert any("zero gradients" in why for why in found.escalated) and found.broken.any()


class Near(Around):
    """The gradient is reversed where the two highest logits are near each other, and right elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        top = logits.topk(2, dim=1).values
        near = (top[:, :1] - top[:, 1:] < 0.4).float()
        turned = logits.detach() * 2 - logits
        return near * turned + (1 - near) * logits


def test_gradients_that_are_wrong_where_the_search_ended_are_noticed_there(monkeypatch):
    monkeypatch.setattr(_protocols, "begin", lambda engine: engine.look() or Flags())
    found = run(Near(net()), "linf(0.05)")
    assert any(why.startswith(ASTRAY) for why in found.escalated) and "survey" in stages(found)


# --- randomness


def test_random_outputs_are_met_with_averaged_gradients_and_many_draws():
    model = Noisy(net())
    first, other = engine(model), engine(model)
    state = torch.random.get_rng_state()
    _protocols.robench_standard(first)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    _protocols.robench_standard(other)
    assert first.escalated == ["the model's output is random"] and first.draws == _rand.LOOKS
    assert stages(first)[-3:] == ["eot-clean", "eot-apgd-ce", "eot-apgd-dlr"]
    assert [asdict(s) | {"seconds": 0} for s in first.waterfall] == [asdict(s) | {"seconds": 0} for s in other.waterfall]
    assert torch.equal(first.best, other.best) and first.broken.sum() >= run(net()).broken.sum() - 2


def test_rows_of_a_random_model_are_judged_by_many_draws_whatever_the_batch():
    x = images(6)
    y = predict(net(), x, width=64).argmax(1)
    first, other = (robench.attack(Noisy(net()), x, y, threat=EPS, batch_size=size) for size in (256, 4))
    same(first, other)
    assert (first.rows["draws"] == _rand.LOOKS).all() and first.escalated == ("the model's output is random",)
    assert first.validity.status == "randomised" and not first.validity.sound
    assert first.validity.reasons == (f"the output is random; attacked through it and judged by {_rand.LOOKS} draws",)
    assert "escalated: the model's output is random" in first.validity.notes


def test_the_verdict_on_a_random_model_does_not_depend_on_the_state_of_the_callers_generator():
    x = images(6)
    y = predict(net(), x, width=64).argmax(1)
    found = []
    for state in range(3):
        torch.manual_seed(state)
        found.append(robench.attack(Noisy(net()), x, y, threat=EPS).validity)
    assert {str(one) for one in found} == {str(found[0])} and found[0].status == "randomised"


class Dropping(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        *first, last = self.net
        for layer in first:
            x = layer(x)
        return last(nn.functional.dropout(x, 0.3, training=True))


class Voting(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        looks = [self.net(x + 0.1 * torch.randn_like(x)).softmax(1) for _ in range(4)]
        return torch.stack(looks).mean(0).clamp_min(1e-12).log()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Dropping, Voting])
def test_dropout_and_votes_are_randomised_and_not_suspicious(kind):
    x = images(12)
    y = predict(net(), x, width=64).argmax(1)
    found = robench.attack(kind(net()), x, y, threat=EPS).validity
    assert found.status == "randomised" and f"judged by {_rand.LOOKS} draws" in found.reasons[0]


def test_random_outputs_and_no_gradient_need_both_answers():
    found = run(Noisy(Rounded(net())))
    assert "the model's output is random" in found.escalated and any("round" in why for why in found.escalated)
    assert "bpda-eot-apgd-ce" in stages(found) and "eot-square" in stages(found)


# --- the probe


def test_the_probe_looks_at_the_same_samples_in_every_company():
    found = [engine(Rounded(net()), hold=hold) for hold in (1, 7, 1024)]
    flags = [begin(one) for one in found]
    assert flags[0].troubles == flags[1].troubles == flags[2].troubles != []
    for one in found[1:]:
        assert all(torch.equal(one.books[name], found[0].books[name]) for name in BOOKS)


def test_flat_logits_are_seen_and_a_layer_that_no_stand_in_fits_is_no_error():
    found = run(Flat(net()))
    assert any("zero gradients" in why for why in found.escalated)
    assert found.broken.sum() >= run(net()).broken.sum() - 2


# --- every trap


def beside(name: str):
    path = Path(__file__).parents[1] / "traps" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"traps_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BROKEN = ("BitDepth", "Boxed", "Detached", "Jpeg", "Requantised", "Staircase", "Thermometer", "Thousandfold", "WrongClass")
"""Traps that the escalation breaks at least as far as the net inside them; the others may be suspicious instead."""
MODELS = vars(beside("models"))
TRAPS = [n for n, v in MODELS.items() if isinstance(v, type) and issubclass(v, MODELS["Trap"]) and n != "Trap"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_broken_to_within_two_points_of_its_net_or_suspicious(name, monkeypatch):
    monkeypatch.undo()
    models, study = beside("models"), beside("study")
    found = study.examine(study.trap(getattr(models, name)), 24)
    assert found["outcome"] in (("broken",) if name in BROKEN else ("broken", "suspicious")), found


@pytest.mark.slow
def test_no_honest_model_escalates():
    study = beside("study")
    for case in study.HONEST:
        x, y = (part[:200] for part in case.images())
        for seed in range(3):
            model = case.make().eval()
            found = Engine(model, x, y, torch.arange(len(x)), ThreatModel.parse(case.threat), seed=seed)
            begin(found)
            assert not found.escalated, (case.name, case.threat, seed, found.escalated)
