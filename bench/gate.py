"""The one place where what a model returns becomes float32 logits (N, K), and where its images are copied for it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from robench.errors import OutputError, must

_DEPTH = 1e4
"""How far below a row's lowest finite logit a masked class is put: exp(-1e4) is 0 in float32, as exp(-inf) is."""

_WRAP = "wrap the model so that it returns the logits alone"


def logits_of(outputs: Any, count: int) -> Tensor:
    """Float32 logits (N, K) of what a model returned for ``count`` images; gradients flow through.

    Taken are a tensor (N, K), K at least 2, also with trailing sides of 1; the first entry of a tuple or list; the entry
    or attribute ``logits`` of a dictionary, dataclass or object, or its only tensor (N, K). Types of 16 and 64 bits
    become float32. A class that is masked with -inf gets a finite logit far below all others of its row: it can never
    be predicted, has probability 0, and losses and gradients stay finite.

    A single logit is refused: whether it means class 0 or 1, and where its border lies, only its author knows.

    Raises:
        OutputError: Anything else; says what came.
    """
    found = _tensor_of(outputs, count)
    while found.dim() > 2 and found.shape[-1] == 1:
        found = found.squeeze(-1)
    if found.dim() != 2 or found.shape[0] != count or found.shape[1] < 2 or not found.is_floating_point():
        expected = f"logits ({count}, K), K at least 2"
        raise OutputError(must("the model's outputs", expected, _said(outputs), _remedy(found, count)))
    if found.is_inference():
        found = found.clone()
    found = found.float()
    return found if torch.compiler.is_compiling() else _unmasked(found)


def _unmasked(logits: Tensor) -> Tensor:
    """Logits whose -inf entries became finite ones far below the others; rows without a finite entry stay."""
    with torch.no_grad():
        hidden = logits.isneginf()
        if not bool(hidden.any()):
            return logits
        lowest = logits.masked_fill(hidden, torch.inf).amin(1, keepdim=True) - _DEPTH
        hidden &= lowest.isfinite()
    return torch.where(hidden, lowest, logits)


def _tensor_of(outputs: Any, count: int) -> Tensor:
    """The tensor that holds the logits.

    Raises:
        OutputError: There is none, or several.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, tuple | list) and outputs and isinstance(outputs[0], Tensor):
        return _first(outputs, count)
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    fitting = [value for value in _entries(outputs) if _fits(value, count)]
    if len(fitting) != 1:
        raise OutputError(must("the model's outputs", f"logits ({count}, K)", _said(outputs), _WRAP))
    found: Tensor = fitting[0]
    return found


def _first(outputs: Any, count: int) -> Tensor:
    """The first entry of a tuple, unless a later one is as wide or narrower: then that one may be the logits.

    Raises:
        OutputError: The tuple can be read in two ways.
    """
    first: Tensor = outputs[0]
    rivals = [other for other in outputs[1:] if _fits(other, count) and other.shape[1] <= first.shape[1]]
    if _fits(first, count) and rivals:
        expected = "logits alone, or first and narrower than all else"
        raise OutputError(must("the model's outputs", expected, _said(outputs), _WRAP))
    return first


def _fits(value: Any, count: int) -> bool:
    fits = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 2
    return fits and value.shape[0] == count and value.shape[1] >= 2


def _entries(outputs: Any) -> list[Any]:
    if isinstance(outputs, Mapping):
        return list(outputs.values())
    if is_dataclass(outputs):
        return [getattr(outputs, field.name) for field in fields(outputs)]
    return []


def _said(outputs: Any) -> str:
    """What came, in a few words."""
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)} of {str(outputs.dtype).removeprefix('torch.')}"
    if isinstance(outputs, tuple | list):
        inner = ", ".join(_said(value) for value in outputs[:3]) + (", ..." if len(outputs) > 3 else "")
        return f"a {type(outputs).__name__} of {inner or 'nothing'}"
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {[str(key)[:20] for key in list(outputs)[:6]]}"
    return f"a {type(outputs).__name__}"


def _remedy(found: Tensor, count: int) -> str:
    if found.is_floating_point() and found.shape in ((count,), (count, 1)):
        return "if its logit z means class 1 where it is positive, return torch.stack([torch.zeros_like(z), z], 1)"
    return _WRAP


class Gate(nn.Module):
    """A model behind the gate: takes images (N, C, H, W), hands it a copy of them, returns float32 logits (N, K).

    Args:
        model: A module, or a function of images; modules and tensors that a function refers to are held, so that their
            mode and state are looked after, and count in the model's identity.
        dtype: Floating-point type in which the model takes images; None is float32.
        least: Fewest images that it takes at once; smaller batches are filled with their last image.
        most: Most images that it takes at once; None is any number. Larger batches are asked in parts.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        dtype: torch.dtype | None = None,
        least: int = 1,
        most: int | None = None,
    ) -> None:
        super().__init__()
        self.dtype, self.least, self.most = dtype, least, most
        if isinstance(model, nn.Module):
            self.net = model
            self.train(getattr(model, "training", False))
        else:
            self._function = (model,)
            referred = list(_referred(model))
            self.held = nn.ModuleList(dict.fromkeys(value for value in referred if isinstance(value, nn.Module)))
            for tensor in referred:
                if isinstance(tensor, Tensor):
                    self.register_buffer(f"tensor{len(self._buffers)}", tensor.detach(), persistent=True)

    @property
    def model(self) -> Callable[[Tensor], Any]:
        """What stands behind the gate."""
        own: Callable[[Tensor], Any] = self.net if "net" in self._modules else self._function[0]
        return own

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):  # structured pruning reads the graph of the model itself
            through: Tensor = self.model(x)
            return through
        if self.most is None and self.least == 1:
            return self._asked(x)
        width = self.most or max(len(x), self.least)
        return torch.cat([self._asked(self._filled(x[a : a + width]))[: len(x) - a] for a in range(0, len(x), width)])

    def _filled(self, x: Tensor) -> Tensor:
        missing = self.least - len(x)
        return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])

    def _asked(self, x: Tensor) -> Tensor:
        own = x.clone()
        return logits_of(self.model(own if self.dtype is None else own.to(self.dtype)), x.shape[0])


def _referred(function: Any) -> Iterator[Any]:
    """What a function refers to: its owner, its closure, the globals it names, its arguments and attributes."""
    while isinstance(function, functools.partial):
        yield from [*function.args, *function.keywords.values()]
        function = function.func
    yield function
    owner = getattr(function, "__self__", None)
    yield owner
    for holder in (function, owner):
        yield from getattr(holder, "__dict__", {}).values()
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isfunction(plain):
        known = inspect.getclosurevars(plain)
        yield from [*known.nonlocals.values(), *known.globals.values()]
