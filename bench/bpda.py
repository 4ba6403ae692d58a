"""Layers that let no gradient through: finding them, and giving them the gradient of a stand-in (BPDA)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robench.errors import ConfigError, ModelError, must, suggestion
from robench.inference import untouched
from robench.ops.chance import seeded
from robench.ops.random import Draws

StandIn = Callable[[Tensor], Tensor]
"""A differentiable function of a layer's input, with the shape of the layer's output."""


def identity(x: Tensor) -> Tensor:
    """x itself: for layers that nearly keep their input (rounding, JPEG, denoisers)."""
    return x


def straight_through(x: Tensor) -> Tensor:
    """x cut to [0, 1]: the identity's gradient, and none where a pixel is saturated."""
    return x.clamp(0, 1)


def blur(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels of (N, C, H, W), fewer at the edges: for median and other smoothing filters."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def softmax(x: Tensor) -> Tensor:
    """Softmax over dimension 1: for layers that keep the highest of several values (argmax as one-hot, top-k masks)."""
    return x.softmax(1)


def sigmoid(x: Tensor) -> Tensor:
    """Logistic function: for steps at 0 (sign, heaviside)."""
    return x.sigmoid()


STAND_INS: dict[str, StandIn] = {
    "blur": blur,
    "identity": identity,
    "sigmoid": sigmoid,
    "softmax": softmax,
    "straight_through": straight_through,
}
"""Name -> stand-in. Besides, ``smooth`` is the layer's own method of that name, a differentiable copy of itself."""


class _Through(torch.autograd.Function):
    """The second tensor exactly; its gradient goes to the first."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def through(stand_in: Tensor, value: Tensor) -> Tensor:
    """``value`` bit by bit, whose gradient goes to ``stand_in``; both of one shape.

    Raises:
        ModelError: The shapes differ, or the value is no floating-point tensor.
    """
    if stand_in.shape != value.shape or not value.is_floating_point():
        got = (tuple(value.shape), str(value.dtype))
        remedy = "give a stand-in of the layer's output shape, or substitute the module around it"
        raise ModelError(must("a substituted layer's output", f"floats of shape {tuple(stand_in.shape)}", got, remedy))
    with torch.no_grad():  # not detach(), which may itself be a function that has a stand-in
        bare = value.view_as(value)
    found: Tensor = _Through.apply(stand_in.to(value.dtype), bare)  # type: ignore[no-untyped-call]
    return found


def substitute(
    model: nn.Module,
    layers: Mapping[str, str | StandIn] | None = None,
    *,
    functions: Mapping[str, str | StandIn] | None = None,
) -> nn.Module:
    """A copy with the same weights and the same forward pass, whose backward pass takes the stand-ins' gradients.

    Weights and buffers are shared with the model, which is left as it is. Layers that declare a ``substitute``, as the
    inference-time defences do, get that one unless ``layers`` says otherwise.

    Args:
        model: Takes images (N, C, H, W) in [0, 1], returns logits (N, K).
        layers: Path of a module (``"net.0"``) or name of its class (``"BitDepth"``) -> name of a stand-in (``identity``,
            ``straight_through``, ``blur``, ``softmax``, ``sigmoid``, ``smooth``) or a function of the layer's input.
        functions: Name of a torch function of one tensor that the forward pass calls (``"round"``) -> the same;
            ``"comparison"`` is a ``>`` or ``<`` that is then turned into floats, a function of the difference;
            ``"argmax"`` one that becomes a one-hot of floats.

    Raises:
        ConfigError: No such layer or stand-in.

    Source: Athalye et al., ICML 2018, section 4.1 (backward pass differentiable approximation).
    """
    twin = _shared_copy(model)
    chosen = _declared(twin) | _named(twin, layers or {})
    for path, name in chosen.items():
        module = twin.get_submodule(path)
        module.register_forward_hook(_hook(_stand_in(name, module)), with_kwargs=True)
    return Bridged(twin, {key: _stand_in(name, None) for key, name in functions.items()}) if functions else twin


def differentiable(model: nn.Module) -> tuple[nn.Module, bool]:
    """What has the model's outputs and a gradient, and whether that is a substitute's.

    A module whose attribute ``gradient`` is False says that it has none of its own (an integer model of another runtime);
    then it is a copy in which the declared substitutes give it. Any other model is returned itself, whatever its
    gradient is worth.
    """
    if all(getattr(module, "gradient", True) is not False for module in model.modules()):
        return model, False
    return substitute(model), True


def bridged(
    model: nn.Module, x: Tensor, *, stand_in: str | StandIn = "identity", thorough: bool = False, rounds: int = 8
) -> tuple[nn.Module, list[str]]:
    """The model with a stand-in for each layer that lets no gradient through, and the names of those layers.

    Found are the innermost ones first; what they hid is looked for again. A layer that declares a substitute gets that.
    Where still no gradient leads through the whole, calls of ``HIDING`` outside any module get the stand-in too, and
    are named as ``round()``. A model that no stand-in fits is returned as it was found, without a gradient.

    ``detach`` and the like also have honest uses, and a gradient that is there may be the wrong one: an attack tries the
    model as it is, and the ``thorough`` copy besides.

    Args:
        model: The model to attack.
        x: A few images (N, C, H, W) in [0, 1].
        stand_in: For layers that declare none; those whose output shape differs from the input's are left as they are.
        thorough: Substitute the calls of ``HIDING`` in any case.
        rounds: How often the search is done again.
    """
    names: list[str] = []
    for _ in range(rounds):
        twin = substitute(model, dict.fromkeys(names, stand_in))
        fresh = [name for name in gradient_holes(twin, x) if name not in names and _fits(twin, name, x, stand_in)]
        if not fresh:
            break
        names += fresh
    told = sorted({*names, *(path or type(model).__name__ for path in _declared(twin))})
    if not thorough and not _silent(twin, (x,), {}, 0):
        return twin, told
    met = _met(twin, x)
    functions = dict.fromkeys(met, stand_in)
    return substitute(model, dict.fromkeys(names, stand_in), functions=functions), told + [f"{name}()" for name in met]


HIDING = ("argmax", "ceil", "comparison", "detach", "floor", "round", "sign", "trunc")
"""Torch functions that let no gradient through and keep the shape."""


def _met(model: nn.Module, x: Tensor) -> list[str]:
    """Which of ``HIDING`` the forward pass calls on what depends on x."""
    met: set[str] = set()

    def noting(name: str) -> StandIn:
        return lambda value: met.add(name) or value  # type: ignore[func-returns-value]

    with untouched(model), torch.enable_grad(), _Intercepted({name: noting(name) for name in HIDING}):
        model(x.detach().requires_grad_(True))
    return sorted(met)


class Bridged(nn.Module):
    """A model whose calls of some torch functions take a stand-in's gradient."""

    def __init__(self, model: nn.Module, functions: Mapping[str, StandIn]) -> None:
        super().__init__()
        self.model = model
        self.functions = dict(functions)
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        with _Intercepted(self.functions):
            logits: Tensor = self.model(x)
        return logits


class _Intercepted(TorchFunctionMode):
    """Calls of the functions take their stand-ins' gradients while this is entered, for one forward pass."""

    def __init__(self, functions: Mapping[str, StandIn]) -> None:
        super().__init__()
        self.functions = functions
        self.lost: dict[int, tuple[Tensor, str, Tensor]] = {}
        """Truth values and integers by id: themselves (so that no id comes twice), how they came about, and from what."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        if not args or not isinstance(args[0], Tensor) or not isinstance(found, Tensor):
            return found
        if name in _ORDERS and "comparison" in self.functions:
            self.lost[id(found)] = (found, "comparison", _ORDERS[name] * (args[0] - args[1]))
        elif name == "argmax":
            self.lost[id(found)] = (found, "argmax", args[0])
        elif id(args[0]) in self.lost:
            _, how, given = self.lost[id(args[0])]
            if name in _CASTS and found.is_floating_point() and found.shape == given.shape:
                return self._through(how, given, found)
            if name == "one_hot":
                self.lost[id(found)] = (found, how, given)
        return self._through(name, args[0], found) if name != "argmax" else found

    def _through(self, name: str, given: Tensor, found: Tensor) -> Tensor:
        if name not in self.functions or not given.requires_grad:
            return found
        return through(self.functions[name](given), found)


_ORDERS = {"gt": 1, "ge": 1, "greater": 1, "lt": -1, "le": -1, "less": -1}
_CASTS = ("double", "float", "half", "to", "type")


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that holds the very same parameters and buffers."""
    held = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


def _declared(model: nn.Module) -> dict[str, str | StandIn]:
    found = ((path, getattr(module, "substitute", None)) for path, module in model.named_modules())
    return {path: name for path, name in found if isinstance(name, str)}


def _named(model: nn.Module, layers: Mapping[str, str | StandIn]) -> dict[str, str | StandIn]:
    """Path -> stand-in, from paths and class names."""
    modules = dict(model.named_modules())
    found: dict[str, str | StandIn] = {}
    for key, name in layers.items():
        paths = [key] if key in modules else [p for p, module in modules.items() if type(module).__name__ == key]
        if not paths:
            known = [*modules, *{type(module).__name__ for module in modules.values()}]
            raise ConfigError(must("a layer to substitute", "a module's path or class", key, suggestion(key, known)))
        found |= dict.fromkeys(paths, name)
    return found


def _stand_in(name: str | StandIn, module: nn.Module | None) -> StandIn:
    if callable(name):
        return name
    own = getattr(module, "smooth", None)
    known = STAND_INS | ({"smooth": own} if callable(own) else {})
    if name not in known:
        raise ConfigError(must("a stand-in", "a known one or a function", name, suggestion(name, known)))
    return known[name]


def _hook(stand_in: StandIn) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]:
    def replaced(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        given = args[0] if args else next(iter(kwargs.values()))
        return through(stand_in(given), value) if torch.is_grad_enabled() else value

    return replaced


def gradient_holes(model: nn.Module, x: Tensor) -> list[str]:
    """Paths of the innermost modules whose output depends on their input but whose gradient is zero or missing.

    Each module is run alone on what reaches it from ``x``: random cotangents are pulled back, and the input is moved at
    random. A model that does it in its own forward, outside any module, is named by its class. Layers that only lose a
    part of the gradient are not found.

    Args:
        model: It is left as it was, and is looked at in eval mode.
        x: A few images (N, C, H, W) in [0, 1].

    Source: Athalye et al., ICML 2018, section 3 (shattered gradients).
    """
    found: list[str] = []
    with untouched(model):
        for path, module, args, kwargs in reversed(_calls(model, x)):
            covered = any(name.startswith(f"{path}." if path else "") for name in found)
            if not covered and _is_hole(module, args, kwargs):
                found.append(path)
    return sorted(path or type(model).__name__ for path in found)


_Call = tuple[str, nn.Module, tuple[Any, ...], dict[str, Any]]


def _calls(model: nn.Module, x: Tensor) -> list[_Call]:
    """First call of every module in a forward pass, outer ones before inner ones, with its detached arguments."""
    seen: dict[str, _Call] = {}

    def noted(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.setdefault(path, (path, module, _mapped(args, _cut), _mapped(kwargs, _cut)))

        return note

    # TorchScript takes no hooks: what is inside it is looked at as a whole.
    open_ones = [(p, m) for p, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)]
    handles = [m.register_forward_pre_hook(noted(p), with_kwargs=True) for p, m in open_ones]
    try:
        with torch.no_grad(), seeded(0, "holes", device=x.device):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values())


def _is_hole(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    places = [i for i, value in enumerate(args) if isinstance(value, Tensor) and value.is_floating_point()]
    return any(_silent(module, args, kwargs, i) and _depends(module, args, kwargs, i) for i in places)


def _silent(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> bool:
    """Whether random cotangents on all outputs give the argument no gradient, or a zero one."""
    leaf = args[place].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        outputs = _run(module, (*args[:place], leaf.clone(), *args[place + 1 :]), kwargs)
        total = sum(((out * _noise(out, 2)).sum() for out in outputs if out.requires_grad), leaf.new_zeros(()))
        if not total.requires_grad:
            return True
        gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0]
    return gradient is None or not bool(gradient.any())


def _depends(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], place: int) -> bool:
    """Whether a random move of the argument, by a tenth to ten times its size, changes any output."""
    value = args[place]
    size = value.double().square().mean().sqrt().clamp_min(1e-3).to(value)
    with torch.no_grad():
        before = _run(module, args, kwargs)
        for step, share in enumerate((0.1, 1.0, 10.0)):
            moved = value + share * size * _noise(value, step)
            after = _run(module, (*args[:place], moved, *args[place + 1 :]), kwargs)
            if any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                return True
    return False


def _run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """All tensors that a module returns, on copies of its arguments and under always the same draws."""
    first = next((a for a in args if isinstance(a, Tensor)), None)
    with seeded(0, "holes", device="cpu" if first is None else first.device):
        return list(_tensors(module(*_mapped(args, _copied), **_mapped(kwargs, _copied))))


def _noise(like: Tensor, step: int) -> Tensor:
    draws = Draws(0, torch.zeros(1, dtype=torch.int64, device=like.device))
    return draws.normal("holes", tuple(like.shape), step=step)[0].to(
        like.dtype if like.is_floating_point() else torch.float32
    )


def _cut(value: Tensor) -> Tensor:
    return value.detach().clone()


def _copied(value: Tensor) -> Tensor:
    return value.clone()


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and dictionaries with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(one, change) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(one, change) for one in value)
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _fits(model: nn.Module, name: str, x: Tensor, stand_in: str | StandIn) -> bool:
    """Whether the stand-in's output has the shape and kind of the layer's."""
    if name not in dict(model.named_modules()):
        return False
    with untouched(model):
        calls = {path: (module, args, kwargs) for path, module, args, kwargs in _calls(model, x)}
        module, args, kwargs = calls[name]
        with torch.no_grad():
            outputs = _run(module, args, kwargs)
            return (
                len(outputs) == 1
                and outputs[0].is_floating_point()
                and _stand_in(stand_in, module)(args[0]).shape == outputs[0].shape
            )
