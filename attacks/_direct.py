"""An attack of the table as a user calls it: a plain module, a threat as text, and simple defaults."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from robench.admission import Admitted, admit, as_module, own_autograd, own_images
from robench.errors import ConfigError, DataError, must
from robench.inference import require_finite_weights, untouched
from robench.ops.precision import bears_channels_last
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION, TARGETED
from robench.victim import Victim

Attack = Callable[..., Tensor]

WIDTH = 64
"""Padded width of a victim's batches."""

TRIED = 8
"""Images on which a model is tried channels-last."""

log = logging.getLogger(__name__)


def direct(attack: Attack) -> Attack:
    """The attack with a plain module's convenience; a victim that is given goes straight through.

    Beside the attack's own parameters it takes

    * ``threat``: a ``ThreatModel`` or its text, ``linf(8/255)``;
    * ``seed``: of every draw, 0 by default; ``seeds`` (``Draws``) instead gives the samples other ids than 0..N-1;
    * ``target``: classes (N,) that the images are to be taken for. Then a sample is broken where the model predicts its
      target, and all losses are those of the target. Only attacks that are defined for it take one.

    Deep convolutional nets are asked channels-last, where they are faster, and others not, whatever the images' own layout.
    The module, or function, is attacked in eval mode and given back as it was; images and labels are copied. What comes
    back is (N, ...): per sample the first
    success (a minimal-norm attack's nearest one), else the point that came closest to one.

    Raises:
        ConfigError: A norm that the attack does not know, or a target that it does not take.
        DataError: Images that are not finite float32 in [0, 1], or labels or targets that are no classes of the model.
        ModelError: A model that does not return logits, or that changes while it is attacked.
    """

    @wraps(attack)
    def called(
        model: Victim | nn.Module | Callable[[Tensor], Any],
        x: Tensor,
        y: Tensor,
        *,
        threat: ThreatModel | str,
        seed: int = 0,
        seeds: Draws | None = None,
        target: Tensor | None = None,
        **params: Any,
    ) -> Tensor:
        threat = ThreatModel.parse(threat) if isinstance(threat, str) else threat
        seeds = Draws(seed, torch.arange(len(x), device=x.device)) if seeds is None else seeds
        if isinstance(model, Victim):
            return attack(model, x, y, threat=threat, seeds=seeds, **params)
        _require_usable(attack, threat, target)
        with opened(model, x, y, target=target) as (net, x, y, target), ExitStack() as stack:
            if isinstance(params.get("surrogate"), nn.Module):
                params["surrogate"] = stack.enter_context(_asked(params["surrogate"], x)).net
            x, y, task = x.contiguous(), y if target is None else target, CLASSIFICATION if target is None else TARGETED
            victim = Victim(net, x, y, threat=threat, task=task, width=WIDTH)
            victim.channels_last = bears_channels_last(net, x[:TRIED])
            return attack(victim, x, y, threat=threat, seeds=seeds, **params)

    vars(called)["__signature__"] = _signature(attack, called)
    return called


def beside(attack: Callable[..., Any]) -> Callable[..., Any]:
    """A function on (model, x, y) that is no attack of the table, behind the same door as those are."""

    @wraps(attack)
    def called(model: nn.Module | Callable[[Tensor], Any], x: Tensor, y: Tensor, **params: Any) -> Any:
        with opened(model, x, y) as (net, images, labels, _):
            return attack(net, images, labels, **params)

    return called


def _signature(attack: Attack, called: Attack) -> inspect.Signature:
    """The attack's own parameters behind those that every attack takes."""
    own = inspect.signature(attack).parameters
    common = [p for p in inspect.signature(called, follow_wrapped=False).parameters.values() if p.kind != p.VAR_KEYWORD]
    return inspect.Signature([*common, *(p for name, p in own.items() if name not in {"victim", *(c.name for c in common)})])


def _require_usable(attack: Attack, threat: ThreatModel, target: Tensor | None) -> None:
    name, facts = attack.__name__, vars(attack)["facts"]
    if threat.norm not in facts["norms"]:
        expected = "one of " + ", ".join(facts["norms"])
        raise ConfigError(must(f"the norm of {name}", expected, threat.norm, "choose another attack"))
    if target is not None and not facts.get("targeted"):
        remedy = "leave it out, or choose an attack such as pgd, cw or square"
        raise ConfigError(must(f"the target of {name}", "None", "classes", remedy))


@contextmanager
def opened(
    model: nn.Module | Callable[[Tensor], Any], x: Tensor, y: Tensor, *, target: Tensor | None = None
) -> Iterator[tuple[nn.Module, Tensor, Tensor, Tensor | None]]:
    """A model as robench can ask it, and copies of images, labels and targets; the caller's stay as they are.

    Raises:
        DataError: Images that are not finite float32 in [0, 1], or labels or targets that are no classes of the model.
        ModelError: A model that does not return logits, or that changes while it is attacked.
    """
    _require_images(x)
    with own_autograd():
        images = own_images(x)
        with _asked(model, images) as admitted:
            _require_labels(len(x), y, target, classes=admitted.logits.shape[1])
            yield admitted.net, images, own_images(y), None if target is None else own_images(target)


@contextmanager
def _asked(model: nn.Module | Callable[[Tensor], Any], images: Tensor) -> Iterator[Admitted]:
    """The model after its trial, in eval mode; it goes back as it came."""
    own = as_module(model)
    require_finite_weights(own)
    with untouched(own):
        admitted = admit(own, images, width=WIDTH)
        for note in admitted.notes:
            log.warning("the model %s", note)
        yield admitted


def _require_images(x: Tensor) -> None:
    """Images in the box; an attack would only clamp them silently."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        remedy = "divide by 255: x.float() / 255" if got == "torch.uint8" else "convert with x.float()"
        raise DataError(must("images", "a float32 tensor in [0, 1]", got, remedy))
    x = x.detach()
    if not len(x) or not bool(x.isfinite().all()) or float(x.min()) < 0 or float(x.max()) > 1:
        remedy = "pass plain pixels: normalisation belongs in the model (robench.models.Normalised)"
        got = f"{tuple(x.shape)} in [{float(x.min()):g}, {float(x.max()):g}]" if len(x) else "none"
        raise DataError(must("images", "at least one, all finite and in [0, 1]", got, remedy))


def _require_labels(count: int, y: Tensor, target: Tensor | None, *, classes: int) -> None:
    """Labels and targets are among the model's classes."""
    for what, given in {"labels": y, "targets": target}.items():
        if given is None:
            continue
        if not isinstance(given, Tensor) or given.dtype != torch.int64:
            got = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
            raise DataError(must(what, "an int64 tensor", got, "convert with y.long() if they are class indices"))
        if not (given.shape == (count,) and bool(((given >= 0) & (given < classes)).all())):
            got = f"{tuple(given.shape)} in {int(given.min())}..{int(given.max())}" if len(given) else "none"
            raise DataError(must(what, f"({count},) in 0..{classes - 1}", got, "give one class index per image"))
    if target is not None and bool((target == y).any()):
        raise DataError(must("targets", "other classes than the labels", "equal ones", "choose a wrong class per image"))
