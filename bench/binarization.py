"""Could the attack have found an adversarial example, had there been one? A task with a planted one tells.

Source: Zimmermann et al., NeurIPS 2022 (Increasing Confidence in Adversarial Robustness Evaluations), section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from robench.admission import admit, as_module, own_autograd, own_images
from robench.data.checks import check_images
from robench.devices import exact_arithmetic, resolve_device
from robench.errors import ConfigError, DataError, ModelError, must
from robench.evaluation import evaluate
from robench.inference import chunks, padded, predict, require_finite_weights, untouched
from robench.ops.norms import Ball, distance, per_sample, steepest
from robench.ops.random import Draws
from robench.spec import Settings, ThreatModel

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

PASS = 0.95
"""Least success rate of an attack that passes; the paper's."""
RANDOM = 0.5
"""Largest success rate of random draws at which the test still asks something of the attack."""
CLOSENESS = 0.999
"""Where between the best inner point and the planted one the border lies; ``tight`` in the authors' code."""
GAP = 0.05
"""Share of the radius between inner points and the ball's surface; as in the authors' code."""
_RIDGE = 1e-9
"""Of the mean squared feature, so that the solution exists where points coincide."""


@dataclass(frozen=True)
class Binarization:
    """What ``binarization_test`` found."""

    success_rate: float
    """Share of the usable samples on which the attack found the planted class, in [0, 1]."""
    random_rate: float
    """Share of the usable samples on which random draws found it, in [0, 1]."""
    n: int
    """Usable samples: those whose planted point a linear readout tells from the others."""
    threshold: float
    """Success rate from which the attack passes."""
    rows: pd.DataFrame = field(repr=False)
    """One row per sample: ``sample, usable, attack_success, random_success, status``."""

    @property
    def status(self) -> str:
        """``passed``, ``failed``, or ``uninformative`` where few samples were usable or random draws did as well."""
        if 2 * self.n < len(self.rows) or self.random_rate > RANDOM:
            return "uninformative"
        return "passed" if self.success_rate >= self.threshold else "failed"

    @property
    def passed(self) -> bool:
        """Whether the attack found what was planted."""
        return self.status == "passed"


def binarization_test(
    model: nn.Module,
    x: Tensor,
    *,
    attack: str = "robench-standard",
    threat: str = "linf(8/255)",
    n_samples: int = 64,
    inner: int = 199,
    trials: int = 200,
    head: str | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Binarization:
    """Attack a task with a known adversarial example, made from the model's own features.

    For each image the last linear layer is replaced by one of two classes, which parts a single point on the surface of
    the ball from the image and ``inner`` random points inside. The planted point is an adversarial example by
    construction, so an attack that finds none says nothing about the robustness of the model. A failed test convicts
    the number, a passed one does not vouch for it.

    Args:
        model: Takes float32 images (N, C, H, W) in [0, 1], returns logits (N, K); it is left as it was.
        x: Images (N, C, H, W), float32 in [0, 1].
        attack: A protocol, or an attack with arguments such as ``pgd(steps=40)``.
        threat: ``linf(eps)`` or ``l2(eps)``, eps in units of [0, 1].
        n_samples: The first images that take part; the authors take 512.
        inner: Random inner points per image; more make the task harder, and need about as many features.
        trials: Random points of the surface that random search looks at, per image.
        head: Dotted name of the linear layer to replace; None is the last one that runs.
        seed: Seed of every draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; None keeps the model where it is.

    Raises:
        ConfigError: Another norm, a count below 1, or no attack of that name.
        DataError: Images outside [0, 1], or no images.
        ModelError: No linear layer on vectors of features, or it cannot have two outputs.

    Source: Zimmermann et al., NeurIPS 2022, section 3 (one surface point, a tight border). The readout is the
    least-squares one of smallest norm in place of logistic regression.
    """
    ball = ThreatModel.parse(threat)
    _check(ball, x, counts={"n_samples": n_samples, "inner": inner, "trials": trials})
    if not isinstance(model, nn.Module):
        raise ModelError(
            must("the model", "a torch.nn.Module, whose last layer is replaced", type(model).__name__, "pass it")
        )
    own = as_module(model)
    require_finite_weights(own)
    here = next((p.device for p in own.parameters()), torch.device("cpu"))
    where = torch.device(here if device is None else resolve_device(device))
    parts = []
    with own_autograd(), exact_arithmetic():
        points = own_images(x[:n_samples]).to(where)
        draws = Draws(seed, torch.arange(len(points), device=where))
        planted = copy.deepcopy(own).to(where)
        with untouched(planted):
            net = admit(planted, points, width=Settings().width).net
            name = (head if net is planted else f"net.{head}") if head else _head(net, points[:1])
            for rows in _apart(points, ball):
                task = _planted(net, name, Ball(points[rows], ball), draws=draws[rows], inner=inner)
                parts.append(_measure(task, attack=attack, draws=draws[rows], trials=trials, seed=seed))
    frame = pd.concat(parts).sort_values("sample", ignore_index=True)
    usable = frame[frame["usable"]]
    rates = [float(usable[c].mean()) if len(usable) else 0.0 for c in ("attack_success", "random_success")]
    return Binarization(rates[0], rates[1], len(usable), PASS, frame)


def _check(threat: ThreatModel, x: Tensor, *, counts: dict[str, int]) -> None:
    if threat.norm not in ("linf", "l2"):
        raise ConfigError(must("the norm of binarization_test", "linf or l2", threat.norm, "choose another threat"))
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(must(name, "at least 1", count, "leave it out for the default"))
    check_images(x)
    if not len(x):
        raise DataError(must("images", "at least one", 0, "give some test images"))


@dataclass(frozen=True)
class _Task:
    """Binary tasks of some images whose balls do not meet."""

    model: nn.Module
    ball: Ball
    usable: Tensor
    """Whether the readout parts the planted point from the others, bool (N,)."""


def _measure(task: _Task, *, attack: str, draws: Draws, trials: int, seed: int) -> pd.DataFrame:
    """One row per image: whether the attack, and whether random draws, found the planted class."""
    x, threat = task.ball.x, task.ball.threat
    labels = torch.zeros(len(x), dtype=torch.int64)
    found = evaluate(task.model, x.cpu(), labels, threat=str(threat), attacks=[attack], seed=seed)
    rows = found.rows.groupby("sample", sort=True)
    told = {"attack_success": rows["broken"].any().to_numpy(), "status": rows["status"].max().to_numpy()}
    by_chance = _by_chance(task, draws, trials)
    frame = {"sample": draws.ids.tolist(), "usable": task.usable.tolist(), "random_success": by_chance.tolist()}
    return pd.DataFrame({**frame, **told})


def _by_chance(task: _Task, draws: Draws, trials: int) -> Tensor:
    """Whether any of ``trials`` random points of the surface is of the planted class, bool (N,)."""
    hit = torch.zeros(len(task.ball.x), dtype=torch.bool, device=task.ball.x.device)
    for trial in range(trials):
        points = _scattered(task.ball, draws, "binarization.trial", step=trial)
        logits = predict(task.model, points, width=Settings().width)
        hit |= logits[:, 1] > logits[:, 0]
    return hit


def _apart(x: Tensor, threat: ThreatModel) -> Iterator[Tensor]:
    """Rows of the images in groups within which no two balls meet, so that a point tells whose task it is."""
    left = list(range(len(x)))
    while left:
        chosen: list[int] = []
        for row in left:
            gaps = distance(x[chosen], x[row].expand(len(chosen), *x.shape[1:]), threat.norm) if chosen else None
            if gaps is None or float(gaps.min()) > 2.1 * threat.eps:
                chosen.append(row)
        left = [row for row in left if row not in set(chosen)]
        yield torch.tensor(chosen, device=x.device)


def _scattered(ball: Ball, draws: Draws, stage: str, *, step: int, share: float = 1.0) -> Tensor:
    """A random point at most ``share`` of eps away, the whole of it for 1: uniform (linf), or of random direction (l2).

    Changes that leave the box are turned round, so that points inside and on the surface differ in size alone.
    """
    shape, reach = ball.x.shape[1:], share * min(ball.threat.eps, float(ball.x[0].numel()) ** 0.5)
    if ball.threat.norm == "linf":
        delta = 2 * draws.uniform(stage, shape, step=step).to(ball.x) - 1
        delta = delta / per_sample(delta.flatten(1).abs().amax(1), delta)
    else:
        delta = steepest(draws.normal(stage, shape, step=step).to(ball.x), "l2")
    delta = delta * reach
    outside = (ball.x + delta < 0) | (ball.x + delta > 1)
    return ball.project(ball.x + torch.where(outside, -delta, delta))


def _head(model: nn.Module, x: Tensor) -> str:
    """Name of the last linear layer that runs on vectors, one per image.

    Raises:
        ModelError: There is none.
    """
    seen: list[str] = []

    def note(name: str) -> RemovableHandle:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0].dim() == 2:
                seen.append(name)

        return model.get_submodule(name).register_forward_pre_hook(hook)

    handles = [note(name) for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
    predict(model, x, width=Settings().width)
    for handle in handles:
        handle.remove()
    if not seen:
        raise ModelError(must("the model", "a linear layer on vectors of features", "none that runs", "name it as head="))
    return seen[-1]


def _features(model: nn.Module, head: str, x: Tensor) -> Tensor:
    """What the layer ``head`` is given for each image, float64 (N, D)."""
    taken: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, given: taken.append(given[0].double()))
    width, parts = Settings().width, []
    with torch.no_grad():
        for a, b in chunks(len(x), width):
            taken.clear()
            model(padded(x[a:b], width))
            parts.append(taken[-1][: b - a])
    handle.remove()
    return torch.cat(parts)


def _planted(model: nn.Module, head: str, ball: Ball, *, draws: Draws, inner: int) -> _Task:
    """The binary tasks of some images: every image gets its own readout of the same features."""
    goal = _scattered(ball, draws, "binarization.planted", step=0)
    others = [_scattered(ball, draws, "binarization.inner", step=k, share=1 - GAP) for k in range(inner)]
    looks = [ball.x, *others, goal]
    features = torch.stack([_features(model, head, look) for look in looks], dim=1)
    solved = [_readout(part) for part in features]
    weight, border = (torch.stack(parts).float() for parts in zip(*solved, strict=True))
    task = _Planted(model, head, ball, readout=_Readouts(weight, features[:, 0].float(), border))
    return _Task(task, ball, _parts(task, ball.x, goal))


def _readout(features: Tensor) -> tuple[Tensor, Tensor]:
    """Direction (D,) and border of the linear map that is 0 on all but the last point (n, D) and 1 there.

    The map of smallest norm where there are features enough, else the least-squares one; scaled so that the best inner
    point and the planted one lie 1 apart.
    """
    offsets = features - features[0]
    kernel = offsets @ offsets.T
    size = kernel.diagonal().mean().clamp_min(torch.finfo(kernel.dtype).tiny)
    goal = torch.zeros(len(offsets), dtype=kernel.dtype, device=kernel.device)
    goal[-1] = 1
    ridge = _RIDGE * size * torch.eye(len(offsets), dtype=kernel.dtype, device=kernel.device)
    weight = offsets.T @ torch.linalg.solve(kernel + ridge, goal)
    scores = offsets @ weight
    low, high = scores[:-1].max(), scores[-1]
    gap = (high - low).clamp_min(torch.finfo(kernel.dtype).tiny)
    parted = high - low > 1e-6 * scores.abs().max()
    return torch.where(parted, weight / gap, 0.0), torch.where(parted, low / gap + CLOSENESS, torch.ones_like(low))


def _parts(model: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    """Whether the whole model, in float32, calls the image class 0 and the planted point class 1, bool (N,)."""
    inner, planted = (predict(model, points, width=Settings().width) for points in (x, goal))
    return (inner[:, 0] > inner[:, 1]) & (planted[:, 1] > planted[:, 0])


class _Readouts(nn.Module):
    """A linear readout of two classes per image; ``rows`` says whose is asked for."""

    weight: Tensor
    origin: Tensor
    border: Tensor

    def __init__(self, weight: Tensor, origin: Tensor, border: Tensor) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("origin", origin), ("border", border)):
            self.register_buffer(name, value)
        self.rows = torch.zeros(0, dtype=torch.int64)

    def forward(self, features: Tensor) -> Tensor:
        rows = self.rows
        score = ((features - self.origin[rows]) * self.weight[rows]).sum(1) - self.border[rows]
        return torch.stack([-score, score], dim=1)


class _Planted(nn.Module):
    """The model with its last linear layer replaced by the readout that belongs to the nearest image."""

    centres: Tensor

    def __init__(self, model: nn.Module, head: str, ball: Ball, *, readout: _Readouts) -> None:
        super().__init__()
        self.model, self.readout, self.norm = copy.deepcopy(model), readout, ball.threat.norm
        parent, _, name = head.rpartition(".")
        setattr(self.model.get_submodule(parent), name, readout)
        self.register_buffer("centres", ball.x)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.inf if self.norm == "linf" else 2.0
        with torch.no_grad():
            self.readout.rows = torch.cdist(x.flatten(1), self.centres.flatten(1), p=order).argmin(1)
        logits: Tensor = self.model(x)
        if logits.shape != (len(x), 2):
            remedy = "name as head= a linear layer whose outputs are the logits"
            raise ModelError(must("the model with two classes", f"logits ({len(x)}, 2)", tuple(logits.shape), remedy))
        return logits
