"""Honest models of many families, each trained here in some seconds by its seed: none of them may be called suspicious."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.compress._prune import prune
from robench.data._digits import digits
from robench.defenses.training import train
from robench.models._mlp import mlp
from robench.models._residual import wrn
from robench.models._small_cnn import small_cnn
from robench.models._vit import vit
from robench.zoo import load

Images = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Honest:
    """A model and what it is attacked with."""

    name: str
    make: Callable[[], nn.Module]
    threat: str = "linf(0.1)"
    images: str = "digits"
    """``digits``; with two or three classes ``digits2`` or ``digits3``; in colour ``colour``."""
    random: bool = False


@cache
def pictures(name: str, split: str) -> Images:
    data = digits(split=split)
    x, y = data.images(), data.labels
    if name in ("digits2", "digits3"):
        rows = (y < int(name[-1])).nonzero()[:, 0]
        return x[rows], y[rows]
    if name == "digits100":
        other = torch.arange(len(y)).flip(0)
        return (x + x[other] * 0.35).clamp(0, 1), y * 10 + y[other]
    if name == "colour":
        tint = 0.3 + 0.7 * torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(len(x)))
        return (x * tint).clamp(0, 1), y
    return x, y


def first(name: str, count: int) -> Images:
    x, y = pictures(name, "test")
    return x[:count], y[:count]


_TAUGHT: dict[str, nn.Module] = {}


def taught(key: str, make: Callable[[], nn.Module], recipe: str = "standard", *, steps: int = 150, images: str = "digits",
           augment: str = "") -> nn.Module:  # fmt: skip
    """The net of a key, trained once per process."""
    if key not in _TAUGHT:
        with torch.random.fork_rng():
            torch.manual_seed(len(key))
            net = make()
        train(net, *pictures(images, "train"), recipe=recipe, steps=steps, seed=len(key), augment=augment)
        _TAUGHT[key] = net.eval()
    return copy.deepcopy(_TAUGHT[key])


def pooled(pool: Callable[[], nn.Module], *, norm: bool = False, act: Callable[[], nn.Module] = nn.ReLU, width: int = 12,
           classes: int = 10, channels: int = 1, drop: float = 0.0) -> nn.Module:  # fmt: skip
    """Three convolutions, each followed by a pool."""
    layers: list[nn.Module] = []
    for a, b in ((channels, width), (width, 2 * width), (2 * width, 2 * width)):
        layers += [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), act(), pool()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(drop), nn.Linear(2 * width * 16, classes))


def largest(**told) -> nn.Module:
    return pooled(lambda: nn.MaxPool2d(2), **told)


def average(**told) -> nn.Module:
    return pooled(lambda: nn.AvgPool2d(2), **told)


def acting(act: Callable[[], nn.Module]) -> nn.Module:
    """A ``small_cnn`` with another activation."""
    net = small_cnn(width=8)
    for i, layer in enumerate(net):
        if isinstance(layer, nn.ReLU):
            net[i] = act()
    return net


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()


class Warmer(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) / 20


class Colder(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 5


class LogProbabilities(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).log_softmax(1)


class Double(Wrapped):
    """Computes in float64 and answers in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.net = net.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double()).float()


class Short(Wrapped):
    """Computes in 16 bits."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(net)
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.to(self.dtype)).float()


class Together(nn.Module):
    """The mean of some nets."""

    def __init__(self, *nets: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(0)


class Blurred(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


class Steady(Wrapped):
    """The mean over fixed noisy copies: smoothing with the draws made once."""

    def __init__(self, net: nn.Module, size: float, copies: int = 8) -> None:
        super().__init__(net)
        noise = torch.randn(copies, 1, 32, 32, generator=torch.Generator().manual_seed(3))
        self.register_buffer("noise", size * noise)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.net(x + n) for n in self.noise]).mean(0)


class Vote(Wrapped):
    """Randomised smoothing: the mean probability over fresh noise, as logits."""

    def __init__(self, net: nn.Module, size: float, copies: int) -> None:
        super().__init__(net)
        self.size, self.copies = size, copies

    def forward(self, x: Tensor) -> Tensor:
        looks = [self.net(x + self.size * torch.randn_like(x)).softmax(1) for _ in range(self.copies)]
        return torch.stack(looks).mean(0).clamp_min(1e-12).log()


class Dropped(Wrapped):
    """Dropout that stays on."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = functional.dropout(x, 0.2, training=True) if isinstance(layer, nn.Linear) else x
            x = layer(x)
        return x


def normalised(act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(1024, 64), nn.LayerNorm(64), act(), nn.Linear(64, 64), nn.LayerNorm(64),
                           act(), nn.Linear(64, 10))  # fmt: skip
    return layers


def cnn(key: str, recipe: str = "standard", *, steps: int = 150, width: int = 8, augment: str = "", images: str = "digits",
        classes: int = 10, channels: int = 1) -> Callable[[], nn.Module]:  # fmt: skip
    make = lambda: small_cnn(width=width, num_classes=classes, in_channels=channels)  # noqa: E731
    return lambda: taught(key, make, recipe, steps=steps, augment=augment, images=images)


def other(key: str, make: Callable[[], nn.Module], recipe: str = "standard", **told) -> Callable[[], nn.Module]:
    return lambda: taught(key, make, recipe, **told)


BASE = cnn("cnn 8")
ROBUST = cnn("cnn 8 robust", "pgd_at(eps=0.1, steps=5)", steps=300)
ROBUST2 = cnn("cnn 8 trades", "trades(eps=0.1, steps=5)", steps=300)
FAR = cnn("cnn 8 farther", "trades(eps=0.15, steps=3)", steps=250)
MAXPOOL = other("max pool", largest)
MAXPOOL_BN = other("max pool norm", lambda: largest(norm=True))


HONEST = [
    Honest("cnn", BASE),
    Honest("cnn narrow eps", BASE, "linf(0.02)"),
    Honest("cnn wide eps", BASE, "linf(0.3)"),
    Honest("cnn l2", BASE, "l2(0.7)"),
    Honest("cnn l2 wide", BASE, "l2(2)"),
    Honest("cnn l1", BASE, "l1(6)"),
    Honest("cnn l0", BASE, "l0(6)"),
    Honest("cnn adversarial", ROBUST),
    Honest("cnn adversarial, far", ROBUST, "linf(0.2)"),
    Honest("cnn adversarial, l2", ROBUST, "l2(1.5)"),
    Honest("cnn adversarial, l1", ROBUST, "l1(12)"),
    Honest("cnn trades", ROBUST2),
    Honest("cnn trades, l2", ROBUST2, "l2(1.5)"),
    Honest("cnn trades, l2 wide", ROBUST2, "l2(2.5)"),
    Honest("cnn far", FAR, "linf(0.15)"),
    Honest("digits-trades, l2", lambda: load("digits-trades"), "l2(1.5)"),
    Honest("digits-pgd-at, l2", lambda: load("digits-pgd-at"), "l2(2)"),
    Honest("digits-pgd-at, l1", lambda: load("digits-pgd-at"), "l1(15)"),
    Honest("digits-vit", lambda: load("digits-vit"), "linf(0.03)"),
    Honest("max pool", MAXPOOL, "linf(0.06)"),
    Honest("max pool, wide", MAXPOOL, "linf(0.1)"),
    Honest("max pool norm", MAXPOOL_BN, "linf(0.05)"),
    Honest("max pool norm, wide", MAXPOOL_BN, "linf(0.1)"),
    Honest("max pool l2", MAXPOOL, "l2(0.7)"),
    Honest("max pool adversarial", other("max pool at", largest, "pgd_at(eps=0.1, steps=5)", steps=300)),
    Honest("max pool adversarial norm", other("max pool bn at", lambda: largest(norm=True), "pgd_at(eps=0.1, steps=5)",
                                              steps=250)),
    Honest("max pool augmented", other("max pool aug", largest, "augmented"), "linf(0.05)"),
    Honest("max pool tanh", other("max pool tanh", lambda: largest(act=nn.Tanh)), "linf(0.06)"),
    Honest("average pool", other("average pool", average), "linf(0.06)"),
    Honest("average pool norm", other("average pool norm", lambda: average(norm=True)), "linf(0.06)"),
    Honest("tanh", other("tanh", lambda: acting(nn.Tanh)), "linf(0.06)"),
    Honest("gelu", other("gelu", lambda: acting(nn.GELU)), "linf(0.06)"),
    Honest("silu", other("silu", lambda: acting(nn.SiLU)), "linf(0.06)"),
    Honest("softplus", other("softplus", lambda: acting(nn.Softplus)), "linf(0.06)"),
    Honest("elu adversarial", other("elu at", lambda: acting(nn.ELU), "pgd_at(eps=0.1, steps=5)", steps=250)),
    Honest("leaky", other("leaky", lambda: acting(lambda: nn.LeakyReLU(0.2))), "linf(0.06)"),
    Honest("mlp", other("mlp", mlp), "linf(0.05)"),
    Honest("mlp adversarial", other("mlp at", mlp, "pgd_at(eps=0.1, steps=5)", steps=300)),
    Honest("mlp deep", other("mlp deep", lambda: mlp(hidden=48, depth=5)), "linf(0.05)"),
    Honest("mlp layer norm", other("mlp layer norm", normalised), "linf(0.05)"),
    Honest("mlp gelu norm", other("mlp gelu norm", lambda: normalised(nn.GELU)), "l2(0.7)"),
    Honest("linear", other("linear", lambda: mlp(depth=0)), "linf(0.03)"),
    Honest("vit", other("vit", lambda: vit(dim=32, heads=2, depth=2), steps=250), "linf(0.02)"),
    Honest("vit adversarial", other("vit at", lambda: vit(dim=32, heads=2, depth=2), "trades(eps=0.03, steps=2)", steps=250),
           "linf(0.04)"),
    Honest("residual", other("residual", lambda: wrn(depth=10, width=1), steps=100), "linf(0.03)"),
    Honest("dropout off", other("dropout off", lambda: largest(drop=0.5)), "linf(0.06)"),
    Honest("two classes", cnn("two classes", images="digits2", classes=2), images="digits2"),
    Honest("two classes, robust", cnn("two at", "pgd_at(eps=0.2, steps=5)", images="digits2", classes=2), "linf(0.2)",
           images="digits2"),
    Honest("three classes", cnn("three classes", images="digits3", classes=3), images="digits3"),
    Honest("hundred classes", cnn("hundred classes", images="digits100", classes=100, width=16, steps=700), "linf(0.03)",
           images="digits100"),
    Honest("colour", cnn("colour", images="colour", channels=3), "linf(0.06)", images="colour"),
    Honest("colour adversarial", cnn("colour at", "pgd_at(eps=0.1, steps=5)", images="colour", channels=3, steps=250),
           images="colour"),
    Honest("float64", lambda: Double(BASE()), "linf(0.06)"),
    Honest("bfloat16", lambda: Short(BASE(), torch.bfloat16), "linf(0.06)"),
    Honest("float16", lambda: Short(BASE(), torch.float16), "linf(0.06)"),
    Honest("bfloat16 mlp", lambda: Short(other("mlp", mlp)(), torch.bfloat16), "linf(0.05)"),
    Honest("warmer", lambda: Warmer(BASE()), "linf(0.06)"),
    Honest("colder", lambda: Colder(BASE()), "linf(0.06)"),
    Honest("log-probabilities", lambda: LogProbabilities(BASE()), "linf(0.06)"),
    Honest("pruned", lambda: prune(BASE(), amount=0.6), "linf(0.06)"),
    Honest("pruned robust", lambda: prune(ROBUST(), amount=0.5)),
    Honest("mean of three", lambda: Together(BASE(), cnn("cnn 6", width=6)(), other("gelu", lambda: acting(nn.GELU))()),
           "linf(0.06)"),
    Honest("blurred", lambda: Blurred(BASE()), "linf(0.06)"),
    Honest("fixed smoothing", lambda: Steady(BASE(), 0.2), "linf(0.06)"),
    Honest("hardly trained", cnn("short", steps=25), "linf(0.03)"),
    Honest("cut images", cnn("cutmix", augment="cutmix"), "linf(0.06)"),
    Honest("mixed images", cnn("mixup", augment="mixup"), "linf(0.06)"),
    Honest("vote of noise", lambda: Vote(BASE(), 0.1, 8), "linf(0.06)", random=True),
    Honest("vote of noise, robust", lambda: Vote(ROBUST(), 0.2, 8), random=True),
    Honest("dropout on", lambda: Dropped(BASE()), "linf(0.06)", random=True),
]  # fmt: skip
