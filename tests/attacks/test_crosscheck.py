"""Our attacks beside other libraries', a slow twin and closed forms."""

import copy

import foolbox
import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescentNumpy
from art.estimators.classification import PyTorchClassifier
from torch import nn

from robench.attacks import fgsm, pgd
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim

EPS = {"linf": 0.05, "l2": 0.6}


class Tracing(Victim):
    """Keeps the last looked-at points and lets no sample leave, so that whole trajectories can be compared."""

    def _record(self, points, rows, margin, *told):
        super()._record(points, rows, margin, *told)
        self.broken[:] = False
        self.last = points


def ours(net, data, norm, steps, attack="pgd"):
    x, y, ids = data
    threat = ThreatModel.parse(f"{norm}({EPS[norm]})")
    victim = Tracing(net, x, y, threat=threat)
    if attack == "fgsm":
        fgsm(victim, x, y, threat=threat, seeds=Draws(0, ids))
    else:
        options = {"steps": steps, "step_size": EPS[norm] / 4, "random_start": False}
        pgd(victim, x, y, threat=threat, seeds=Draws(0, ids), **options)
    return victim.last


def arts(net, data, norm, steps):
    x, y, _ = data
    classifier = PyTorchClassifier(
        model=nn.ModuleList([net])[0], loss=nn.CrossEntropyLoss(), input_shape=(1, 16, 16), nb_classes=10,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    order, labels = {"linf": np.inf, "l2": 2}[norm], np.eye(10, dtype=np.float32)[y.numpy()]
    options = {"norm": order, "eps": EPS[norm], "batch_size": 64}
    if steps:
        options |= {"eps_step": EPS[norm] / 4, "max_iter": steps, "verbose": False}
    attack = (ProjectedGradientDescentNumpy if steps else FastGradientMethod)(classifier, **options)
    return torch.from_numpy(attack.generate(x.numpy(), labels))


def foolboxes(net, data, norm, steps):
    x, y, _ = data
    kinds = {
        ("linf", True): foolbox.attacks.LinfPGD, ("l2", True): foolbox.attacks.L2PGD,
        ("linf", False): foolbox.attacks.FGSM, ("l2", False): foolbox.attacks.FGM,
    }  # fmt: skip
    options = {"abs_stepsize": EPS[norm] / 4, "steps": steps, "random_start": False} if steps else {"random_start": False}
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    return kinds[norm, bool(steps)](**options).run(model, x, foolbox.criteria.Misclassification(y), epsilon=EPS[norm])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("theirs", [arts, foolboxes])
def test_fgsm_equals_other_libraries(net, held_out, norm, theirs):
    mine, other = ours(net, held_out, norm, 0, "fgsm"), theirs(copy.deepcopy(net), held_out, norm, 0)
    assert (mine - held_out[0]).abs().max() > 0.01
    assert torch.allclose(mine, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [10, 40])
@pytest.mark.parametrize(
    ("theirs", "norm"),
    [
        (arts, "linf"),
        (foolboxes, "linf"),
        (foolboxes, "l2"),
    ],
)
def test_pgd_equals_other_libraries(net, held_out, norm, steps, theirs):
    mine, other = ours(net, held_out, norm, steps), theirs(copy.deepcopy(net), held_out, norm, steps)
    same = (mine - other).abs().flatten(1).amax(1) <= 1e-5
    assert same.float().mean() >= 0.99
    with torch.no_grad():
        verdicts = [net(points).argmax(1) == held_out[1] for points in (mine, other)]
    assert (verdicts[0] != verdicts[1]).float().mean() <= 0.005
    assert (~verdicts[0]).any()


@pytest.mark.parametrize("steps", [10, 40])
def test_l2_pgd_equals_art_where_the_box_is_far(net, held_out, steps):
    """ART clips to the box before it projects onto the ball, we and foolbox after: off the box the orders agree."""
    x, y, ids = held_out
    grey = (0.4 + 0.2 * x, y, ids)
    mine, other = ours(net, grey, "l2", steps), arts(copy.deepcopy(net), grey, "l2", steps)
    assert mine.min() > 0 and mine.max() < 1
    assert ((mine - other).abs().flatten(1).amax(1) <= 1e-5).float().mean() >= 0.99


def slow_pgd(net, x, y, start, size, steps, *, direction, project):
    """One sample, leaving at the first success; else the lowest margin seen."""
    best, lowest, point = x, float("inf"), start
    for step in range(steps + 1):
        leaf = point.clone().requires_grad_(True)
        logits = net(leaf.expand(64, *x.shape[1:]))[:1]
        rivals = torch.cat([logits[0, :y], logits[0, y + 1 :]])
        margin = (logits[0, y] - rivals.max()).item()
        if margin < lowest:
            best, lowest = point, margin
        if margin <= 0 or step == steps:
            break
        gradient = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([y])), leaf)[0]
        point = project(x, point + size * direction(gradient))
    return best


def towards(x, point, reach):
    """The point, or the next float towards x where rounding carried it beyond ``reach``."""
    near, far = x.numpy(), point.numpy()
    return torch.from_numpy(np.where(np.abs(far - near) > reach, np.nextafter(far, near), far))


def into_cube(eps):
    def project(x, point):
        low, high = towards(x, x - eps, eps).clamp(min=0), towards(x, x + eps, eps).clamp(max=1)
        return torch.minimum(torch.maximum(point, low), high)

    return project


def into_sphere(eps):
    def project(x, point):
        delta = point - x
        point = x + delta * (eps * (1 - 16 * 2.0**-52) / delta.norm()).clamp(max=1)
        return point.clamp(0, 1)

    return project


@pytest.mark.parametrize(
    ("norm", "eps", "size", "direction", "into"),
    [
        ("linf", 1 / 32, 1 / 128, torch.sign, into_cube),
        ("linf", 0.03, 0.011, torch.sign, into_cube),
        ("l2", 0.5, 0.125, lambda g: g / g.norm(), into_sphere),
        ("l2", 0.3, 0.07, lambda g: g / g.norm(), into_sphere),
    ],
)
def test_our_loop_is_its_slow_twin_in_float64_to_the_bit(net, held_out, norm, eps, size, direction, into):
    x, y, ids = held_out[0][:24].double(), held_out[1][:24], held_out[2][:24]
    model, threat = copy.deepcopy(net).double(), ThreatModel.parse(f"{norm}({eps})")
    victim, draws = Victim(model, x, y, threat=threat), Draws(5, ids)
    found = pgd(victim, x, y, threat=threat, seeds=draws, steps=8, step_size=size)
    starts = victim.ball.random(draws, "pgd.start", step=0)
    options = {"direction": direction, "project": into(eps)}
    twin = [slow_pgd(model, x[i : i + 1], int(y[i]), starts[i : i + 1], size, 8, **options) for i in range(24)]
    assert torch.equal(found, torch.cat(twin))
    assert 0 < victim.broken.sum() < 24


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        score = x.flatten(1) @ self.weight
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("attack", [fgsm, pgd])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_models_optimum_is_met_in_closed_form(attack, norm):
    weight = torch.linspace(-1, 1.3, 20)
    x = 0.5 + torch.tensor([0.2, 0.25, 0.3])[:, None, None, None] * weight.sign().view(1, 1, 4, 5)
    y, threat = torch.zeros(3, dtype=torch.int64), ThreatModel.parse(f"{norm}(0.05)")
    victim = Victim(Linear(weight), x, y, threat=threat)
    options = {} if attack is fgsm else {"random_start": False}
    attack(victim, x, y, threat=threat, seeds=Draws(0, torch.arange(3)), **options)
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    expected = 2 * (x.flatten(1) @ weight - 0.05 * dual)
    assert torch.allclose(victim.best_margin, expected, atol=1e-5)
