import logging
import random

import numpy as np
import pytest
import torch
from torch import nn

from robench.attacks import PREFIXES
from robench.attacks._art import CHUNK, art
from robench.errors import AttackError, ConfigError
from robench.inference import fingerprint
from robench.judge import judge
from robench.ops.random import Draws
from robench.registry import Table
from robench.spec import Ref, ThreatModel
from robench.victim import Victim

logging.getLogger("art").setLevel(logging.ERROR)
LINF, L2 = ThreatModel.parse("linf(0.1)"), ThreatModel.parse("l2(1)")


def run(name, net, data, *, threat=LINF, count=8, seed=0, **params):
    x, y, ids = (part[:count] for part in data)
    victim = Victim(net, x, y, threat=threat)
    x_adv = art(victim, x, y, name=name, threat=threat, seeds=Draws(seed, ids), **params)
    return victim, x_adv


CASES = [
    ("FastGradientMethod", LINF, {}),
    ("FastGradientMethod", L2, {}),
    ("ProjectedGradientDescent", LINF, {"max_iter": 10}),
    ("ProjectedGradientDescentNumpy", L2, {"max_iter": 10, "num_random_init": 2}),
    ("SquareAttack", LINF, {"max_iter": 30}),
    ("AutoProjectedGradientDescent", LINF, {"max_iter": 5, "nb_random_init": 1}),
    ("HopSkipJump", L2, {"max_iter": 2, "max_eval": 50, "init_eval": 10}),
    ("BoundaryAttack", ThreatModel.parse("l2(3)"), {"max_iter": 20}),
    ("DeepFool", L2, {"max_iter": 10}),
    ("CarliniL2Method", L2, {"max_iter": 3, "binary_search_steps": 1}),
    ("ElasticNet", ThreatModel.parse("l1(5)"), {"max_iter": 3, "binary_search_steps": 1}),
]


@pytest.mark.parametrize(("name", "threat", "params"), CASES, ids=[f"{n}-{t.norm}" for n, t, _ in CASES])
def test_runs_and_repeats_itself_whatever_the_global_generators_hold(net, held_out, name, threat, params):
    before = fingerprint(net)
    images = []
    for noise in (1, 2):
        random.seed(noise), np.random.seed(noise), torch.manual_seed(noise)
        held = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        images.append(run(name, net, held_out, threat=threat, count=4, **params)[1])
        assert random.getstate() == held[0]
        assert (np.random.get_state()[1] == held[1]).all()
        assert torch.equal(torch.get_rng_state(), held[2])
    assert np.random.RandomState.__module__ == "numpy.random.mtrand"
    assert torch.equal(*images)
    assert images[0].dtype == torch.float32
    assert images[0].shape == (4, 1, 16, 16)
    assert fingerprint(net) == before
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_model_is_given_back(net, held_out, mode):
    net.train(mode)
    try:
        run("ProjectedGradientDescent", net, held_out, max_iter=2)
        assert all(module.training is mode for module in net.modules())
    finally:
        net.eval()


def test_the_norm_the_radius_and_the_step_come_from_the_threat(net, held_out):
    for threat in (LINF, L2):
        victim, x_adv = run("ProjectedGradientDescent", net, held_out, threat=threat, count=64, max_iter=10)
        verdicts = judge(net, victim.x, victim.y, x_adv=x_adv, threat=threat)
        assert not verdicts.projected.any()
        assert verdicts.broken().float().mean() > 0.6
        size = verdicts.distance[~victim.broken]
        assert (size > 0.5 * threat.eps).any()


def test_passes_are_charged_evenly(net, held_out):
    victim, _ = run("ProjectedGradientDescent", net, held_out, count=40, max_iter=10)
    assert (victim.backwards == 10).all() and (victim.forwards > 10).all()
    victim, _ = run("SquareAttack", net, held_out, count=8, max_iter=3)
    assert (victim.backwards == 0).all() and (victim.forwards > 3).all()


def test_what_leaves_the_ball_is_handed_on_for_the_judge_to_project(net, held_out):
    tight = ThreatModel.parse("l2(0.05)")
    victim, x_adv = run("DeepFool", net, held_out, threat=tight, count=16, max_iter=20)
    verdicts = judge(net, victim.x, victim.y, x_adv=x_adv, threat=tight)
    assert verdicts.projected.any()
    assert (verdicts.distance <= 0.05).all()


def test_the_true_labels_count_not_the_predictions(net, held_out):
    """ART calls a changed prediction a success; here an image that was wrong from the start stays counted as broken."""
    x, y, ids = held_out
    wrong = (y[:8] + 1) % 10
    victim, x_adv = run("FastGradientMethod", net, (x, wrong, ids))
    assert judge(net, x[:8], wrong, x_adv=x_adv, threat=LINF).broken().all()
    assert victim.broken.all()


def test_a_sample_keeps_its_chunk_when_the_caller_holds_fewer_or_shuffles(net, held_out):
    x, y, ids = (part[: 2 * CHUNK] for part in held_out)
    whole = run("SquareAttack", net, held_out, count=2 * CHUNK, max_iter=5)[1]
    for part in (slice(0, CHUNK), slice(CHUNK, None)):
        half = run("SquareAttack", net, (x[part], y[part], ids[part]), count=CHUNK, max_iter=5)[1]
        assert torch.equal(half, whole[part])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    mixed = run("SquareAttack", net, (x[order], y[order], ids[order]), count=2 * CHUNK, max_iter=5)[1]
    assert torch.equal(mixed, whole[order])


def test_seeds_change_what_a_random_attack_does(net, held_out):
    tight = ThreatModel.parse("linf(0.01)")
    one, two = (run("SquareAttack", net, held_out, threat=tight, seed=seed, max_iter=5)[1] for seed in (0, 1))
    assert not torch.equal(one, two)


def test_an_unknown_attack_is_refused_with_the_closest_name(net, held_out):
    with pytest.raises(ConfigError, match=r"got 'ProjectedGradientDecent'; did you mean 'ProjectedGradientDescent'\?"):
        run("ProjectedGradientDecent", net, held_out)


@pytest.mark.parametrize("name", ["EvasionAttackX", "inspect", "PyTorchClassifier"])
def test_only_evasion_attacks_are_reachable(net, held_out, name):
    with pytest.raises(ConfigError, match="an evasion attack of ART"):
        run(name, net, held_out)


def test_an_unknown_argument_is_refused(net, held_out):
    with pytest.raises(ConfigError, match=r"got 'max_iters'; did you mean 'max_iter'\?"):
        run("ProjectedGradientDescent", net, held_out, max_iters=3)
    with pytest.raises(ConfigError, match="a known one"):
        run("ProjectedGradientDescent", net, held_out, summary_writer=True)


def test_a_targeted_run_is_refused_because_the_labels_are_the_true_ones(net, held_out):
    with pytest.raises(ConfigError, match="targeted must be False"):
        run("ProjectedGradientDescent", net, held_out, targeted=True)


def test_an_error_inside_art_is_an_attack_error_with_its_text(net, held_out):
    with pytest.raises(AttackError, match="art:ProjectedGradientDescent must be able to run on this model, got 'ValueError"):
        run("ProjectedGradientDescent", net, held_out, max_iter=-3)
    with pytest.raises(AttackError, match=r"EstimatorError|TensorFlow"):
        run("ProjectedGradientDescentTensorFlowV2", net, held_out)


class Sulking(nn.Module):
    def forward(self, x):
        raise torch.OutOfMemoryError("full")


def test_a_full_device_is_not_taken_for_an_error_of_art(net, held_out):
    with pytest.raises(torch.OutOfMemoryError):
        run("FastGradientMethod", Sulking(), held_out)


def test_a_victim_that_grants_scores_only_refuses_art(net, held_out):
    x, y, ids = held_out
    victim = Victim(net, x, y, threat=LINF, access="score")
    with pytest.raises(AttackError, match="access must be at most 'score'"):
        art(victim, x, y, name="FastGradientMethod", threat=LINF, seeds=Draws(0, ids))


def test_eps_zero_returns_the_clean_images_and_inf_is_the_whole_box(net, held_out):
    _, x_adv = run("ProjectedGradientDescent", net, held_out, threat=ThreatModel.parse("linf(0)"))
    assert torch.equal(x_adv, held_out[0][:8])
    victim, x_adv = run("ProjectedGradientDescent", net, held_out, threat=ThreatModel.parse("linf(inf)"), max_iter=10)
    assert victim.broken.all()


def test_float64_images_and_models_are_served(net, held_out):
    import copy

    x, y, ids = held_out
    _, x_adv = run("ProjectedGradientDescent", copy.deepcopy(net).double(), (x.double(), y, ids), max_iter=3)
    assert x_adv.dtype == torch.float64


def test_the_catalog_reads_the_family_from_its_prefix():
    table = Table("attacks", {}, PREFIXES)
    ref = table.resolve("art:SquareAttack(max_iter=3)")
    assert ref == Ref.of("art:SquareAttack", max_iter=3)
    entry = table["art:SquareAttack"]
    assert entry.facts["randomness"] == "call"
    assert entry.load() is art
