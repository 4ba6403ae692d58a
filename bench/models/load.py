"""A user's model: weights for a named architecture, an exported program, or the user's own code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from robench.admission import admit, as_module
from robench.children import inside
from robench.devices import kept_settings
from robench.errors import ConfigError, ModelError, must, one_line, suggestion
from robench.inference import require_finite_weights, untouched
from robench.models.exported import load_exported
from robench.models.weights import ARCHITECTURES, DAMAGED, construct, require_planned
from robench.models.wrap import Normalised
from robench.ops.chance import seeded
from robench.spec import ModelSpec, Ref
from robench.user_code import is_users

_Shape = tuple[int, int, int]
_DEFAULT_SHAPE = (1, 32, 32)
TRIAL = 64
"""Images of the trial pass, as wide as a run's batches are unless told otherwise."""
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".pth.tar")
"""Endings of files of weights; the last is what PyTorch's ImageNet example writes, no archive of tar."""
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
    exact: bool = True,
    shape: _Shape | None = None,
    trust: bool = False,
    sha256: str | None = None,
    weights: str | None = None,
) -> tuple[nn.Module, ModelSpec]:
    """The user's model behind its normalisation, on the CPU, in eval mode, and its spec.

    The model takes pixels (N, C, H, W) in [0, 1]; a trial pass shows that it returns finite logits (N, num_classes).

    Args:
        source: ``FILE.safetensors``, ``FILE.pt``, ``FILE.pth`` or ``FILE.pth.tar`` (a state dict, with ``arch``),
            ``FILE.pt2`` (torch.export), or ``package.module:factory`` / ``path.py:factory``, a function without arguments
            (needs ``trust``).
        arch: Architecture of a weight file, e.g. ``resnet18(num_classes=10)``; classes, channels and size that it does
            not say are taken from ``num_classes`` and ``shape``.
        mean: Mean that is subtracted from pixels, one value or one per channel, in units of ``input_range``.
        std: Standard deviation that they are divided by, likewise.
        input_range: Pixel range that the bare model expects.
        num_classes: Number of logits expected.
        exact: Whether another number of logits is refused; else it only fills in what the architecture does not say.
        shape: Shape (C, H, W) of the images that it will see; None: what the architecture or the exported example says
            (1 x 32 x 32 where they say nothing, and then there is no trial pass).
        trust: Whether code named by ``source`` may be executed.
        sha256: Hash that the bytes of the file must have.
        weights: Hash that parameters and buffers of what the code makes must have (see ``robench.models.identity``).

    Raises:
        ConfigError: Unknown architecture, or a source of no known form.
        ModelError: Missing or damaged file, wrong hash, weights that do not fit or are not finite, code without
            ``trust``, or a trial pass that fails.
    """
    if sha256:
        _check_hash(_file_of(source), sha256)
    net, ref, seen, notes = _bare(source, arch, num_classes=num_classes, shape=shape, trust=trust)
    if weights:
        require_planned(net, source, weights=weights)
    require_finite_weights(net, source)
    plain = set(mean) == {0.0} and set(std) == {1.0} and tuple(input_range) == (0.0, 1.0)
    shape = shape or seen
    if shape:
        _require_channels(mean, shape)
    model = net if plain else Normalised(net, mean=mean, std=std, input_range=input_range)
    model.eval()
    if shape:
        model, more = _tried(model, num_classes if exact else None, shape)
        notes += more
    low, high = input_range
    shape = shape or _DEFAULT_SHAPE
    return model, ModelSpec(ref, num_classes, shape, mean=tuple(mean), std=tuple(std), input_range=(low, high), notes=notes)


def _require_channels(mean: Sequence[float], shape: _Shape) -> None:
    """Refuse a mean of other channels than the images': broadcasting would make a grey image a coloured one.

    Raises:
        ConfigError: Neither one value nor one per channel.
    """
    if len(mean) not in (1, shape[0]):
        expected = f"one value, or one per channel ({shape[0]})"
        raise ConfigError(must("mean and std", expected, tuple(mean), "correct --mean and --std, or the data"))


def is_code(source: str) -> bool:
    """Whether a source names a factory, which is executed, and no file of weights or of an exported program."""
    return ":" in source and not source.endswith((*WEIGHT_FILES, ".pt2"))


def _file_of(source: str) -> Path:
    path, colon, _ = source.rpartition(":")
    return Path(path if colon and path.endswith(".py") else source)


def _bare(
    source: str, arch: str | None, *, num_classes: int, shape: _Shape | None, trust: bool
) -> tuple[nn.Module, Ref, _Shape | None, tuple[str, ...]]:
    """The bare net, the reference that names it, the image shape it is made for, where that is known, and notes."""
    if source.endswith(WEIGHT_FILES):
        return _from_weights(Path(source), arch, num_classes=num_classes, shape=shape)
    if source.endswith(".pt2"):
        program = load_exported(_present(Path(source)), trust=trust)
        return program, Ref.of("file", path=Path(source).name), program.shape, ()
    if ":" in source:
        return _from_factory(source, trust), Ref.of("factory", source=source), None, ()
    forms = "FILE.safetensors, FILE.pt, FILE.pth, FILE.pth.tar, FILE.pt2, package.module:factory or path.py:factory"
    raise ConfigError(must("a model", forms, source, "`robench list models` prints the names of the zoo"))


def _from_weights(
    path: Path, arch: str | None, *, num_classes: int, shape: _Shape | None
) -> tuple[nn.Module, Ref, _Shape, tuple[str, ...]]:
    if arch is None:
        _read(_present(path))  # a file of another kind is told as such, rather than asked for an architecture
        raise ConfigError(must(f"the architecture of {path}", "given", None, "add --arch 'resnet18(num_classes=10)'"))
    given = Ref.parse(arch)
    entry = ARCHITECTURES[given.name]
    known = {"num_classes": num_classes} | ({"in_channels": shape[0], "size": shape[1]} if shape else {})
    ref = ARCHITECTURES.resolve(given.with_defaults({k: v for k, v in known.items() if k in entry.parameters}))
    net = construct(ref)
    notes = read_weights(net, path)
    size = ref.kwargs.get("size", _DEFAULT_SHAPE[1])
    return net, ref, (ref.kwargs.get("in_channels", 1), size, size), notes


def read_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Fill ``model`` with the state dict of a ``.safetensors``, ``.pt``, ``.pth`` or ``.pth.tar`` file; no code is executed.

    Returns:
        A note where the file's weights are of another floating-point type than the model's.

    Raises:
        ModelError: The file is missing, damaged, no state dict, or does not fit the model.
    """
    own = model.state_dict()
    state, notes = _state(_present(path), own)
    _check_fit(own, state, path)
    model.load_state_dict(state)
    require_finite_weights(model, str(path))
    cast = sorted({f"{_name(v)} weights become {_name(own[k])}" for k, v in state.items() if v.dtype != own[k].dtype})
    return (*notes, *(f"is stored in another type: {text}" for text in cast))


def _present(path: Path) -> Path:
    if not path.is_file():
        raise ModelError(must("the model file", "there", str(path), "check the path"))
    return path


def _present_code(path: Path) -> Path:
    """The Python file of a factory.

    Raises:
        ModelError: It is not there; names Python files that are.
    """
    if path.is_file():
        return path
    near = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
    remedy = f"{suggestion(path.name, near)} in {path.parent}" if near else "give its path, e.g. nets/mine.py:make"
    raise ModelError(must("the Python file of the model's factory", "there", str(path), remedy))


def _state(path: Path, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    return _unwrapped(_read(path), path, wanted)


def _read(path: Path) -> Any:
    """What a file of weights holds; no code is executed.

    Raises:
        ModelError: A damaged file, or one of another kind.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if _is_torchscript(path):
            remedy = (
                f"a scripted model is code: load it by a factory, def make(): return torch.jit.load({path.name!r}), "
                "named as FILE.py:make with --trust; or save model.state_dict()"
            )
            raise ModelError(must(f"{path}", "a state dict of tensors", "a TorchScript archive", remedy))
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        remedy = "save model.state_dict(), best as safetensors; whole pickled models execute code and are not read"
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        got = f"a pickled object of {foreign[1]}" if foreign else one_line(str(error), 160)
        raise ModelError(must(f"{path}", "a state dict of tensors", got, remedy)) from error
    except (safetensors.SafetensorError, *DAMAGED) as error:
        got = one_line(str(error), 160)
        raise ModelError(must(f"{path}", "a whole weight file", got, "copy or export it again")) from error


def _is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of ``torch.jit.save``, which holds code beside its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, *DAMAGED):  # no archive, or one that torch's own reader will refuse
        return False


def _unwrapped(found: Any, path: Path, wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict itself, out of a training checkpoint and without what wrappers put before every name; and notes.

    Raises:
        ModelError: No state dict, or several; names what is there.
    """
    notes: tuple[str, ...] = ()
    if not _is_state(found):
        entry, others = _entry(found, path)
        for key in entry:
            found = found[key]
        more = f"; it also holds {others}, not measured: save what is to be measured as a file of its own" if others else ""
        notes = (f"takes its weights from the entry {_dotted(entry)!r} of the file{more}",)
    state = {str(key): value for key, value in found.items()}
    counts = [key for key in state if key.rpartition(".")[2] in _COUNTS and key not in wanted]
    if counts:
        state = {key: value for key, value in state.items() if key not in counts}
        names = sorted({key.rpartition(".")[2] for key in counts})
        notes += (f"leaves out {len(counts)} entries of the file that are no weights ({', '.join(names)})",)
    while state and not set(state) & set(wanted):
        first = {key.partition(".")[0] for key in state}
        if len(first) != 1 or not all("." in key for key in state):
            break
        state = {key.partition(".")[2]: value for key, value in state.items()}
    return state, notes


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
"""Names under which training scripts keep the model's own weights, beside averaged copies of other names."""


_COUNTS = ("total_ops", "total_params", "n_averaged")
"""Buffers that profilers (thop) and ``torch.optim.swa_utils.AveragedModel`` leave in a state dict; no layer has such."""


def _dotted(keys: tuple[Any, ...]) -> str:
    return ".".join(str(key)[:40] for key in keys)


def _entry(found: Any, path: Path) -> tuple[tuple[Any, ...], str]:
    """Where in a checkpoint the model's weights are: the key, or two where the entry is itself a checkpoint.

    And the names of other entries of weights, such as averaged copies.

    Raises:
        ModelError: None does, or several do.
    """
    if not isinstance(found, Mapping):
        remedy = "save model.state_dict()"
        raise ModelError(must(f"{path}", "a state dict (names to tensors)", type(found).__name__, remedy))
    fitting: list[tuple[Any, ...]] = [(key,) for key, value in found.items() if _is_state(value)]
    inner = [(key, value) for key, value in found.items() if isinstance(value, Mapping)]
    fitting = fitting or [(outer, key) for outer, held in inner for key, value in held.items() if _is_state(value)]
    named = [keys for keys in fitting if all(key in _ENTRIES for key in keys)]
    if len(named) == 1 or len(fitting) == 1:
        chosen = (named or fitting)[0]
        return chosen, ", ".join(repr(_dotted(keys)) for keys in fitting[:8] if keys != chosen)
    shown = [_dotted(keys) for keys in fitting[:8]]
    got = f"entries {[str(key)[:40] for key in list(found)[:8]]}, of which {shown or 'none'} hold tensors only"
    expected = "a state dict (names to tensors), or a checkpoint with one"
    raise ModelError(must(f"{path}", expected, got, "save model.state_dict()"))


def _check_fit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    wrong = [f"{k} missing" for k in wanted if k not in state] + [f"{k} unexpected" for k in state if k not in wanted]
    wrong += [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    wrong += [
        f"{k} of {_name(state[k])} instead of {_name(v)}"
        for k, v in wanted.items()
        if k in state and state[k].shape == v.shape and not _castable(state[k].dtype, v.dtype)
    ]
    if wrong:
        got = "; ".join(wrong[:4]) + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        raise ModelError(must(f"the weights in {path}", "those of the architecture", got, _fitting(wanted, state)))


def _fitting(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How weights and architecture come to fit; colour and grey images differ in the first convolution's inputs alone."""
    apart = [(state[k].shape, v.shape) for k, v in wanted.items() if k in state and state[k].shape != v.shape]
    if len(apart) == 1 and set(wanted) == set(state):
        (own, asked), kinds = apart[0], {1: "grey", 3: "colour"}
        alike = len(own) == len(asked) == 4 and (own[0], *own[2:]) == (asked[0], *asked[2:])
        if alike and {own[1], asked[1]} == set(kinds):
            said = f"the weights take {kinds[own[1]]} images, the data are read as {kinds[asked[1]]}"
            return f"{said}: --data 'folder:DIR(channels={own[1]})' reads a folder as the weights take it; or correct --arch"
    return "correct --arch"


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _castable(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether values of one type may stand for the other's: the plain floating-point types for each other, integers too.

    Eight-bit floats have lost a scale that is kept elsewhere, and complex numbers would lose a part.
    """
    if given == wanted:
        return True
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return (given in plain and wanted in plain) or (given in integers and wanted in integers)


def _check_hash(path: Path, wanted: str) -> None:
    with _present(path).open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted.lower():
        raise ModelError(must(f"the sha256 of {path}", wanted.lower(), got, "get the file again, or correct the hash"))


def _from_factory(source: str, trust: bool) -> nn.Module:
    require_trust(source, trust)
    return construct_from_code(source)


def require_trust(source: str, trust: bool) -> None:
    """Refuse to execute code that the user does not vouch for.

    Raises:
        ModelError: No trust.
    """
    if not trust:
        raise ModelError(must(f"the model {source}", "trusted, since its code is executed", "no --trust", "add --trust"))


def construct_from_code(source: str, *, state: int = 0) -> nn.Module:
    """The model of ``path.py:factory`` or ``package.module:factory``, built in one of the states of the global generators.

    The code is read from its files as they are now: bytecode and modules of an earlier call are not used again.

    Args:
        source: The factory.
        state: Number of the state that torch, numpy and Python draw from; the same one gives the same draws.

    Raises:
        ModelError: Code that is missing or fails, or that makes no module.
    """
    place, _, name = source.rpartition(":")
    with seeded(0, "factory", draw=state), _as_it_is_now(source):
        factory = getattr(_module(place), name, None)
        if not callable(factory):
            raise ModelError(must(f"{name!r} of {place}", "a function", factory, "name a factory, as in path.py:make_model"))
        model = _called(factory, source)
    if not callable(model):
        raise ModelError(must(f"what {source} returns", "a torch.nn.Module", type(model).__name__, "return the model"))
    return as_module(model).cpu()


def folder_of(source: str) -> str:
    """The folder of a ``path.py:factory``, in which its helper modules are found too; empty for a dotted module."""
    place = source.rpartition(":")[0]
    return str(Path(place).resolve().parent) if place.endswith(".py") else ""


_of_models: dict[str, str] = {}
"""Modules that were loaded for a model, by name, with their file; the next model's may have the same names."""
_added: list[str] = []
"""The folder of the last ``path.py:factory``, while it stands at the end of the module path."""


@contextmanager
def _as_it_is_now(source: str) -> Iterator[None]:
    """Modules of the user's are loaded anew from their source, and helper modules beside a file are found."""
    for name, file in _of_models.items():
        if getattr(sys.modules.get(name), "__file__", None) == file:
            del sys.modules[name]
    _of_models.clear()
    sys.path[:] = [place for place in sys.path if place not in _added]
    wanted = folder_of(source)
    _added[:] = [wanted] if wanted and wanted not in sys.path else []
    sys.path.extend(_added)  # last, so that nothing there stands in for another module
    importlib.invalidate_caches()
    before, held = set(sys.modules), (sys.pycache_prefix, sys.dont_write_bytecode)
    with tempfile.TemporaryDirectory() as empty:
        sys.pycache_prefix, sys.dont_write_bytecode = empty, True  # bytecode is taken for current by seconds and size
        try:
            yield
        finally:
            sys.pycache_prefix, sys.dont_write_bytecode = held
            if not inside():  # a child keeps the folder for what a forward imports; others would find the next model's there
                sys.path[:] = [place for place in sys.path if place not in _added]
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in set(sys.modules) - before}
    _of_models.update({name: file for name, file in files.items() if file and is_users(file)})


def _called(factory: Callable[[], Any], source: str) -> Any:
    try:
        with kept_settings():
            return factory()
    except _USER_ERRORS as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(must(f"the factory {source}", "callable without arguments", got, _factory_remedy(error))) from error


def _factory_remedy(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "name the file from the factory's own folder, Path(__file__).parent / 'FILE', or by its whole path"
    return "correct the factory"


def _module(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            with kept_settings():
                return importlib.import_module(place)
        name = f"robench_user_{Path(place).stem}"
        spec = importlib.util.spec_from_file_location(name, _present_code(Path(place)))
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        with kept_settings():
            spec.loader.exec_module(module)
    except _USER_ERRORS as error:
        got = f"{type(error).__name__}: {error}"[:200]
        raise ModelError(must(f"the module {place}", "importable", got, "correct it, or install what it needs")) from error
    return module


def _tried(model: nn.Module, num_classes: int | None, shape: _Shape) -> tuple[nn.Module, tuple[str, ...]]:
    """The model as robench can ask it, and notes, once random images have shown that it returns ``num_classes`` logits.

    Random images, because a model may divide by an image's own deviation, which is 0 for constant ones.
    """
    images = torch.rand(TRIAL, *shape, generator=torch.Generator().manual_seed(0))
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with untouched(model):
        admitted = admit(model, images, width=TRIAL)
    for parameter, flag in zip(admitted.net.parameters(), flags, strict=True):  # a widened copy has parameters of its own
        parameter.requires_grad_(flag)
    if num_classes is not None and admitted.logits.shape[1] != num_classes:
        expected, got = f"logits ({TRIAL}, {num_classes})", tuple(admitted.logits.shape)
        raise ModelError(must("the model's output", expected, got, "correct the number of classes"))
    return admitted.net, admitted.notes
