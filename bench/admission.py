"""The door for models and images: whatever the caller hands in becomes what robench measures, or is refused in one line.

One trial on the first real images, at the run's width, says before any work whether a model can be measured, and how.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.devices import is_out_of_memory
from robench.errors import ExitError, ModelError, OutputError, RobenchError, must
from robench.gate import Gate
from robench.inference import padded
from robench.ops.chance import seeded

_WIDENED = (torch.float16, torch.bfloat16)
"""Weights of these types are widened to float32, which holds all their values."""


@dataclass(frozen=True)
class Admitted:
    """A model that passed its trial."""

    net: nn.Module
    """Takes float32 images (N, C, H, W), leaves them as they are, returns float32 logits (N, K)."""
    notes: tuple[str, ...]
    """What was done to make it so, in words."""
    logits: Tensor
    """What it returned for the trial's images, (n, K)."""
    reason: str = ""
    """Why it could not be asked as it is, in words; empty where it could."""


@contextmanager
def own_autograd() -> Iterator[None]:
    """Outside the caller's inference mode, and with gradients allowed; restored afterwards."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def own_images(x: Tensor) -> Tensor:
    """A copy of the caller's tensor that belongs to robench: no history, no inference mode; the order in memory stays."""
    return x.detach().clone()


def as_module(model: nn.Module | Callable[[Tensor], Any]) -> nn.Module:
    """The model itself, a function as a module, or a copy of a model whose tensors were made in inference mode.

    Raises:
        ModelError: Not callable, or a model made in inference mode that cannot be copied.
    """
    if not callable(model):
        remedy = "pass a torch.nn.Module, or a function of images (N, C, H, W)"
        raise ModelError(must("the model", "callable", type(model).__name__, remedy))
    net = model if isinstance(model, nn.Module) else Gate(model)
    if any(tensor.is_inference() for tensor in [*net.parameters(), *net.buffers()]):
        return _copied(net, "whose tensors were made in inference mode")
    return net


def own_copy(net: nn.Module) -> nn.Module:
    """A deep copy whose parameters are leaves, also of a TorchScript module (which copies them as results of a graph)."""
    with torch.no_grad():
        return copy.deepcopy(net)


def _copied(net: nn.Module, what: str) -> nn.Module:
    try:
        return own_copy(net)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        got = f"{type(error).__name__}: {error}"[:160]
        raise ModelError(must(f"a model {what}", "one that can be copied", got, "build it in plain float32")) from error


def admit(net: nn.Module, x: Tensor, *, width: int) -> Admitted:
    """Try a model out on the first images, and give it back as robench can ask it.

    A model that takes float32 images without touching them and returns float32 logits comes back as it is. One that
    returns something else that holds logits, writes to its images, has weights of another floating-point type, or takes
    few images at a time comes back behind a ``Gate``.

    Args:
        net: In eval mode.
        x: Images (N, C, H, W) in [0, 1] on the model's device, robench's own.
        width: Padded batch width of the run.

    Raises:
        ModelError: Outputs that are no logits, a state that the first pass changed, no image with finite logits, or a
            model that cannot take the images; says what came and what helps.
    """
    images = padded(x[:width], width).detach().clone()
    state = _state(net)
    with seeded(0, "trial", device=images.device):
        plain = _plain(net, images)
        reason, logits = ("", plain) if isinstance(plain, Tensor) else (plain, None)
        found, notes = (net, ()) if logits is not None else _gated(net, images)
        if logits is None:
            with torch.no_grad():
                logits = found(images)
    _require_same(state, _state(net))
    logits = logits[: len(x)]
    if not bool(logits.isfinite().all(1).any()):
        got = f"NaN or infinity for each of the first {len(logits)} images"
        raise ModelError(must("the model's logits", "finite", got, "check weights, mean, std and input range"))
    return Admitted(found, notes, logits, reason)


def _plain(net: nn.Module, images: Tensor) -> Tensor | str:
    """Logits of a model that needs no gate: it takes one image and many, leaves them alone, and returns float32 logits.

    Of any other, the reason in words.
    """
    leaf = images.clone().requires_grad_(True)
    asked = f"{len(images)} images that require a gradient"
    try:
        with torch.enable_grad():
            outputs = net(leaf)
        asked = "a single image"
        with torch.no_grad():
            net(images[:1].clone())
    except SystemExit as error:
        raise _exits(error) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__} for {asked}: {error}".replace("\n", " ")[:200]
    if not isinstance(outputs, Tensor) or outputs.dtype != torch.float32 or outputs.is_inference():
        return "outputs that are no float32 tensor"
    if outputs.dim() != 2 or len(outputs) != len(images) or outputs.shape[1] < 2:
        return f"outputs {tuple(outputs.shape)}"
    logits = outputs.detach()
    if bool(logits.isneginf().any()):
        return "logits masked with -inf"
    return logits if torch.equal(leaf.detach(), images) else "other images afterwards: its forward writes to them"


def _exits(error: SystemExit) -> ExitError:
    return ExitError(must("the model's forward", "one that returns", f"sys.exit({error.code!r})", "remove the exit"))


@dataclass(frozen=True)
class _Way:
    """A way of asking a model."""

    net: nn.Module
    dtype: torch.dtype | None = None
    note: str = ""

    def gate(self, *, least: int = 1, most: int | None = None) -> Gate:
        return Gate(self.net, dtype=self.dtype, least=least, most=most)

    def fails(self, images: Tensor) -> Exception | None:
        """What the model raises for these images at once, or None.

        Raises:
            OutputError: Its outputs are no logits.
        """
        try:
            with torch.no_grad():
                self.gate()(images)
        except SystemExit as error:
            raise _exits(error) from error
        except Exception as error:
            if isinstance(error, OutputError) or is_out_of_memory(error):
                raise
            return error
        return None

    def most(self, count: int, images: Tensor) -> int:
        """The most images below ``count`` that it takes at once, halving first; 0 where it takes none."""
        halves = [count >> k for k in range(1, count.bit_length())]
        others = [n for n in range(count - 1, 0, -1) if n not in halves]
        return next((n for n in halves + others if not self.fails(images[:n])), 0)

    def least(self, most: int, images: Tensor) -> int:
        """The fewest images that it takes at once; it takes ``most``."""
        return next(n for n in range(1, most + 1) if n == most or not self.fails(images[:n]))


def _gated(net: nn.Module, images: Tensor) -> tuple[Gate, tuple[str, ...]]:
    """The model behind a gate through which it can be asked, and what that took.

    Raises:
        ModelError: There is none.
    """
    count = len(images)
    first = _Way(net).fails(images)
    ways = [_Way(net)] if first is None else [*_retyped(net), _Way(net)]
    for way in ways:
        most = count if first is None or not way.fails(images) else way.most(count, images)
        if not most:
            continue
        least = way.least(most, images)
        notes = [way.note] if way.note else []
        notes += [f"takes at most {most} images at once, so batches of {count} are asked in parts"] if most < count else []
        notes += [f"takes at least {least} images at once, so smaller batches are filled"] if least > 1 else []
        return way.gate(least=least, most=most if most < count else None), tuple(notes)
    if isinstance(first, RobenchError):
        raise first
    got = f"{type(first).__name__}: {first}".replace("\n", " ")[:200]
    remedy = "check shape, channels and size; a .pt2 must be exported with a dynamic batch dimension"
    raise ModelError(must("the model", f"able to take images {tuple(images.shape)}", got, remedy)) from first


def _retyped(net: nn.Module) -> list[_Way]:
    """A model whose weights are no float32 numbers, asked in their type or, for 16 bits, as a widened copy."""
    tensors = [*net.parameters(), *net.buffers()]
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} - {torch.float32}
    if kinds & set(_WIDENED):
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return [_Way(_copied(net, f"with {names} weights").float(), note=f"has {names} weights, widened to float32")]
    return [_Way(net, torch.float64, "has float64 weights: it is asked in float64")] if torch.float64 in kinds else []


_State = dict[str, tuple[int, int] | Tensor]


def _state(net: nn.Module) -> _State:
    """What tells whether a pass changed a tensor of a model: of parameters identity and version, of buffers a copy.

    Cheaper than a hash of everything. Batch norm moves its averages without counting up their version.
    """
    held: _State = {name: (id(parameter), parameter._version) for name, parameter in net.named_parameters()}
    return held | {name: buffer.detach().clone() for name, buffer in net.named_buffers()}


def _require_same(before: _State, after: _State) -> None:
    """Refuse a model whose first pass changed parameters or buffers; writing the same values again is no change.

    Raises:
        ModelError: Names the first tensor.
    """
    for name in dict.fromkeys([*before, *after]):
        if not _equal(before.get(name), after.get(name)):
            got, remedy = f"{name!r} changed by the first pass", "make the model's forward free of side effects in eval mode"
            raise ModelError(must("the model's state", "the same after as before", got, remedy))


def _equal(a: tuple[int, int] | Tensor | None, b: tuple[int, int] | Tensor | None) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
