"""A user's model: weights for a named architecture, an exported program, or the user's own code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from robench.errors import ConfigError, ModelError, must
from robench.models.exported import load_exported
from robench.models.weights import ARCHITECTURES, DAMAGED, construct
from robench.models.wrap import Normalised
from robench.spec import ModelSpec, Ref

_Shape = tuple[int, int, int]
_DEFAULT_SHAPE = (1, 32, 32)
WEIGHT_FILES = (".safetensors", ".pt", ".pth")
_USER_ERRORS = (
    ArithmeticError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip
"""What a user's code may raise in practice; interrupts and the like pass."""


def load_model(
    source: str,
    *,
    arch: str | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    input_range: tuple[float, float] = (0.0, 1.0),
    num_classes: int = 10,
    shape: _Shape | None = None,
    trust: bool = False,
    sha256: str | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """The user's model behind its normalisation, on the CPU, in eval mode, and its spec.

    The model takes pixels (N, C, H, W) in [0, 1]; a trial pass shows that it returns finite logits (N, num_classes).

    Args:
        source: ``FILE.safetensors``, ``FILE.pt`` or ``FILE.pth`` (a state dict, with ``arch``), ``FILE.pt2`` (torch.export),
            or ``package.module:factory`` / ``path.py:factory``, a function without arguments (needs ``trust``).
        arch: Architecture of a weight file, e.g. ``resnet18(num_classes=10)``; classes, channels and size that it does
            not say are taken from ``num_classes`` and ``shape``.
        mean: Mean that is subtracted from pixels, one value or one per channel, in units of ``input_range``.
        std: Standard deviation that they are divided by, likewise.
        input_range: Pixel range that the bare model expects.
        num_classes: Number of logits expected.
        shape: Shape (C, H, W) of the images that it will see; None: what the architecture or the exported example says
            (1 x 32 x 32 where they say nothing, and then there is no trial pass).
        trust: Whether code named by ``source`` may be executed.
        sha256: Hash that the bytes of the file must have.

    Raises:
        ConfigError: Unknown architecture, or a source of no known form.
        ModelError: Missing or damaged file, wrong hash, weights that do not fit or are not finite, code without
            ``trust``, or a trial pass that fails.
    """
    if sha256:
        _check_hash(_file_of(source), sha256)
    net, ref, seen = _bare(source, arch, num_classes=num_classes, shape=shape, trust=trust)
    require_finite(net, source)
    plain = set(mean) == {0.0} and set(std) == {1.0} and tuple(input_range) == (0.0, 1.0)
    model = net if plain else Normalised(net, mean=mean, std=std, input_range=input_range)
    model.eval()
    shape = shape or seen
    if shape:
        _trial(model, num_classes, shape)
    low, high = input_range
    return model, ModelSpec(ref, num_classes, shape or _DEFAULT_SHAPE, tuple(mean), tuple(std), (low, high))


def _file_of(source: str) -> Path:
    path, colon, _ = source.rpartition(":")
    return Path(path if colon and path.endswith(".py") else source)


def _bare(
    source: str, arch: str | None, *, num_classes: int, shape: _Shape | None, trust: bool
) -> tuple[nn.Module, Ref, _Shape | None]:
    """The bare net, the reference that names it, and the image shape it is made for, where that is known."""
    suffix = Path(source).suffix
    if suffix in WEIGHT_FILES:
        return _from_weights(Path(source), arch, num_classes=num_classes, shape=shape)
    if suffix == ".pt2":
        program = load_exported(_present(Path(source)), trust=trust)
        return program, Ref.of("file", path=Path(source).name), program.shape
    if ":" in source:
        return _from_factory(source, trust), Ref.of("factory", source=source), None
    forms = "FILE.safetensors, FILE.pt, FILE.pt2, package.module:factory or path.py:factory"
    raise ConfigError(must("a model", forms, source, "`robench list models` prints the names of the zoo"))


def _from_weights(path: Path, arch: str | None, *, num_classes: int, shape: _Shape | None) -> tuple[nn.Module, Ref, _Shape]:
    if arch is None:
        raise ConfigError(must(f"the architecture of {path}", "given", None, "add --arch 'resnet18(num_classes=10)'"))
    given = Ref.parse(arch)
    entry = ARCHITECTURES[given.name]
    known = {"num_classes": num_classes} | ({"in_channels": shape[0], "size": shape[1]} if shape else {})
    ref = ARCHITECTURES.resolve(given.with_defaults({k: v for k, v in known.items() if k in entry.parameters}))
    net = construct(ref)
    read_weights(net, path)
    size = ref.kwargs.get("size", _DEFAULT_SHAPE[1])
    return net, ref, (ref.kwargs.get("in_channels", 1), size, size)


def read_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the state dict of a ``.safetensors``, ``.pt`` or ``.pth`` file; no code is executed.

    Raises:
        ModelError: The file is missing, damaged, no state dict, or does not fit the model.
    """
    state = _state(_present(path))
    _check_fit(model.state_dict(), state, path)
    model.load_state_dict(state)
    require_finite(model, str(path))


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(must("the model file", "there", str(path), "check the path"))
    return path


def _state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        remedy = "save model.state_dict(), best as safetensors; whole pickled models execute code and are not read"
        raise ModelError(must(f"{path}", "a state dict of tensors", str(error)[:160], remedy)) from error
    except (safetensors.SafetensorError, *DAMAGED) as error:
        raise ModelError(must(f"{path}", "a whole weight file", str(error)[:160], "copy or export it again")) from error
    return _unwrapped(found, path)


def _unwrapped(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself: out of a training checkpoint's ``state_dict``, without DataParallel's ``module.``."""
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ModelError(must(f"{path}", "a state dict (names to tensors)", type(found).__name__, "save model.state_dict()"))
    prefix = "module." if all(str(k).startswith("module.") for k in found) else ""
    return {str(k).removeprefix(prefix): v for k, v in found.items()}


def _check_fit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    wrong = [f"{k} missing" for k in wanted if k not in state] + [f"{k} unexpected" for k in state if k not in wanted]
    wrong += [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    if wrong:
        got = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ModelError(must(f"the weights in {path}", "those of the architecture", got, "correct --arch"))


def require_finite(model: nn.Module, source: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        ModelError: Names the first tensor with a NaN or an infinity.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(must(f"weight {name!r} of {source}", "finite", "NaN or infinity", "train or export it again"))


def _check_hash(path: Path, wanted: str) -> None:
    with _present(path).open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted.lower():
        raise ModelError(must(f"the sha256 of {path}", wanted.lower(), got, "get the file again, or correct the hash"))


def _from_factory(source: str, trust: bool) -> nn.Module:
    if not trust:
        raise ModelError(must(f"the model {source}", "trusted, since its code is executed", "no --trust", "add --trust"))
    place, _, name = source.rpartition(":")
    factory = getattr(_module(place), name, None)
    if not callable(factory):
        raise ModelError(must(f"{name!r} of {place}", "a function", factory, "name a factory, as in path.py:make_model"))
    model = _called(factory, source)
    if not isinstance(model, nn.Module):
        raise ModelError(must(f"what {source} returns", "a torch.nn.Module", type(model).__name__, "return the model"))
    return model.cpu()


def _called(factory: Callable[[], Any], source: str) -> Any:
    try:
        return factory()
    except _USER_ERRORS as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(must(f"the factory {source}", "callable without arguments", got, "correct the factory")) from error


def _module(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"robench_user_{Path(place).stem}", _present(Path(place)))
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except _USER_ERRORS as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(must(f"the module {place}", "importable", got, "correct it, or install what it needs")) from error
    return module


@torch.no_grad()
def _trial(model: nn.Module, num_classes: int, shape: _Shape) -> None:
    """One pass of a width that no program was exported for by habit, so that a fixed batch size is found out."""
    try:
        logits = model(torch.full((16, *shape), 0.5))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        remedy = "check shape, channels and size; a .pt2 must be exported with a dynamic batch dimension"
        raise ModelError(must("the model", f"able to take images (16, {shape})", str(error)[:200], remedy)) from error
    if not isinstance(logits, Tensor) or logits.shape != (16, num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(must("the model's output", f"logits (16, {num_classes})", got, "correct the number of classes"))
    if not bool(logits.isfinite().all()):
        raise ModelError(must("the model's logits", "finite", "NaN or infinity", "check weights, mean, std and input range"))
