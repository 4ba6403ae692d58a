"""Structured pruning: channels and hidden units taken out, so that what is left is a smaller dense network."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from robench.compress._layers import Layer, bake, is_layer
from robench.errors import ConfigError, ModelError, must
from robench.registry import facts

_UNTRACEABLE = (ValueError, TypeError, RuntimeError, AttributeError, LookupError, AssertionError)
"""What tracing raises: it runs the user's forward on symbols."""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POINTWISE_FUNCTIONS: frozenset[Any] = frozenset(
    {F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.dropout, torch.relu, torch.tanh,
     torch.sigmoid, "relu", "relu_", "tanh", "sigmoid", "contiguous"}
)  # fmt: skip
"""Functions, and methods by name, that work on every number by itself."""
_POOL_FUNCTIONS: frozenset[Any] = frozenset({F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d})


@dataclass
class _Group:
    """Channels that one layer makes and one other takes."""

    producer: Layer
    consumer: Layer
    norms: list[nn.Module] = field(default_factory=list)


@facts(version=1, simulated=False, trainable=True)
def prune_channels(model: nn.Module, *, amount: float = 0.5) -> nn.Module:
    """A deep copy without a share of its inner channels: fewer parameters and multiply-adds, as a dense network.

    A layer's outputs are taken out where exactly one other layer takes them in, with nothing but channel-wise operations
    between (norms, activations, pooling, flattening): those of plain convolutional nets and perceptrons, inner ones of
    residual blocks, hidden units of a transformer's perceptrons. What is added or split (residual streams, attention)
    stays. Of every such layer round(amount * channels) go, those of least L2 norm of their weights; at least one stays.

    Args:
        model: Left as it is; torch.fx must be able to trace it.
        amount: Share of the channels taken out, in [0, 1).

    Raises:
        ConfigError: amount outside [0, 1).
        ModelError: The model cannot be traced, or has no channels that can be taken out.

    Source: Li et al., ICLR 2017, section 3.1 (filters by norm, here L2); Fang et al., CVPR 2023 (groups that go together).
    """
    if not 0 <= amount < 1:
        raise ConfigError(must("amount", "in [0, 1)", amount, "give a share, e.g. 0.5"))
    smaller = copy.deepcopy(model)
    bake(smaller)
    groups = list(_groups(smaller))
    if not groups:
        remedy = "use prune(amount=...), which sets weights to 0"
        raise ModelError(must("a model for prune_channels", "one with channels between two layers only", "none", remedy))
    with torch.no_grad():
        for group in groups:
            _shrink(group, amount)
    return smaller


def _shrink(group: _Group, amount: float) -> None:
    count = group.producer.weight.shape[0]
    norms = group.producer.weight.detach().double().flatten(1).norm(dim=1)
    gone = min(round(amount * count), count - 1)
    keep = norms.argsort(stable=True)[gone:].sort().values
    for layer in (group.producer, *group.norms):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, name, keep, dim=0)
    inputs = group.consumer.weight.shape[1] // count
    columns = (keep[:, None] * inputs + torch.arange(inputs, device=keep.device)).flatten()
    _select(group.consumer, "weight", columns, dim=1)
    for layer in (group.producer, group.consumer, *group.norms):
        _tell_sizes(layer)


def _select(module: nn.Module, name: str, rows: Tensor, *, dim: int) -> None:
    """Keep some rows of a parameter or buffer, if there is one."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        return
    part = value.detach().index_select(dim, rows.to(value.device)).clone()
    setattr(module, name, nn.Parameter(part, value.requires_grad) if isinstance(value, nn.Parameter) else part)


def _tell_sizes(module: nn.Module) -> None:
    """Make a layer's own numbers of channels those of its weights."""
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NORMS):
        held = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(held)


def _groups(model: nn.Module) -> Iterator[_Group]:
    """Pairs of layers with channels that can be taken out, by the graph of the forward pass."""
    try:
        graph = fx.Tracer().trace(model)
    except _UNTRACEABLE as error:
        remedy = "use prune(amount=...), which sets weights to 0, or make forward free of control flow"
        raise ModelError(must("a model for prune_channels", "traceable by torch.fx", str(error)[:120], remedy)) from error
    walk = _Walk(dict(model.named_modules()), graph)
    for node in graph.nodes:
        layer = walk.layer(node)
        group = walk.follow(node, layer) if layer is not None and getattr(layer, "groups", 1) == 1 else None
        if group is not None:
            yield group


class _Walk:
    """A traced graph whose nodes are followed forwards."""

    def __init__(self, modules: dict[str, nn.Module], graph: fx.Graph) -> None:
        self.modules = modules
        self.uses: Counter[int] = Counter()
        for node in graph.nodes:
            owner = str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
            if node.op in ("call_module", "get_attr") and owner in modules:
                self.uses.update(_names(modules[owner]))

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if the graph uses it and its weight nowhere else."""
        if node.op != "call_module":
            return None
        found = self.modules[str(node.target)]
        return found if all(self.uses[name] == 1 for name in _names(found)) else None

    def layer(self, node: fx.Node) -> Layer | None:
        """The layer that a node calls, if nothing else uses it."""
        found = self.module(node)
        return found if isinstance(found, nn.Conv2d | nn.Linear) and is_layer(found) else None

    def follow(self, node: fx.Node, producer: Layer) -> _Group | None:
        """The group that begins at a layer: its outputs up to the only layer that takes them."""
        norms: list[nn.Module] = []
        flat = False
        while len(node.users) == 1:
            node = next(iter(node.users))
            layer = self.layer(node)
            if layer is not None:
                return _Group(producer, layer, norms) if _fits(producer, layer, flat=flat) else None
            module = self.module(node)
            if isinstance(module, _NORMS) and _normalises(module, producer, flat=flat):
                norms.append(module)
            elif _flattens(node, module):
                flat = True
            elif not _keeps_channels(node, planes=isinstance(producer, nn.Conv2d) and not flat, modules=self.modules):
                return None
        return None


def _names(module: nn.Module) -> set[int]:
    """What tells a module and its weight from others."""
    weight = getattr(module, "weight", None)
    return {id(module), id(weight)} if isinstance(weight, Tensor) else {id(module)}


def _fits(producer: Layer, consumer: Layer, *, flat: bool) -> bool:
    """Whether the consumer's inputs are the producer's channels, each with equally many places."""
    count, size = producer.weight.shape[0], consumer.weight.shape[1]
    if isinstance(consumer, nn.Conv2d):
        return isinstance(producer, nn.Conv2d) and not flat and consumer.groups == 1 and size == count
    return size == count if isinstance(producer, nn.Linear) else flat and size % count == 0


def _normalises(norm: nn.Module, producer: Layer, *, flat: bool) -> bool:
    """Whether a norm has one statistic for each of the producer's channels."""
    kind = nn.BatchNorm2d if isinstance(producer, nn.Conv2d) else nn.BatchNorm1d
    return isinstance(norm, kind) and not flat and norm.num_features == producer.weight.shape[0]


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node flattens all dimensions but the first."""
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    return node.target in ("flatten", torch.flatten) and tuple(node.args[1:]) == (1,) and not node.kwargs


def _keeps_channels(node: fx.Node, *, planes: bool, modules: dict[str, nn.Module]) -> bool:
    """Whether an operation leaves every channel to itself; pooling does only where channels are planes."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, _POINTWISE) or (planes and isinstance(module, _POOLS))
    return node.target in _POINTWISE_FUNCTIONS or (planes and node.target in _POOL_FUNCTIONS)
