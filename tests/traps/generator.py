"""Masked models by the dozen: a mechanism, its strength, the samples it acts on and where around them it acts.

Every model keeps (nearly) the decisions of the net inside it, so that the net's robust accuracy is the truth. Half of the
mechanisms, told apart by the checksum of their names, is for setting limits; the other half is for reporting only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Rule = Callable[[Tensor, Tensor], Tensor]
"""The true gradient (N, ...) and the images (N, ...) → the gradient that the model gives."""


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fixed(x: Tensor, seed: int) -> Tensor:
    """The same normal draws for every image, (1, ...)."""
    return drawn((1, *x.shape[1:]), seed).to(x)


class Backward(torch.autograd.Function):
    """The identity, whose gradient passes a rule."""

    @staticmethod
    def forward(ctx, x: Tensor, rule: Rule) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.rule(gradient, *ctx.saved_tensors), None


# who is masked: bool (N,) from images and the net's logits


def everyone(x: Tensor, logits: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.bool, device=x.device)


def classes(*chosen: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, logits: torch.isin(logits.argmax(1), torch.tensor(chosen, device=x.device))


def share(part: float, seed: int = 5) -> Callable[[Tensor, Tensor], Tensor]:
    """About a share of the images, by a smooth feature that small changes hardly move."""

    def chosen(x: Tensor, logits: Tensor) -> Tensor:
        coarse = functional.adaptive_avg_pool2d(x, 4)
        value = (coarse * fixed(coarse, seed)).flatten(1).sum(1)
        return torch.remainder(value, 1.0) < part

    return chosen


# where it acts: bool (N,) from images and logits


def anywhere(x: Tensor, logits: Tensor) -> Tensor:
    return torch.ones(len(x), dtype=torch.bool, device=x.device)


def near_boundary(part: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Where the two highest logits are nearer than a part of the logits' spread."""

    def chosen(x: Tensor, logits: Tensor) -> Tensor:
        top = logits.topk(2, dim=1).values
        return top[:, 0] - top[:, 1] < part * (top[:, 0] - logits.amin(1))

    return chosen


def off_data(x: Tensor, logits: Tensor) -> Tensor:
    """Where many pixels are no 8-bit values or lie within the open range of a changed background."""
    flat = x.flatten(1)
    return ((flat * 255 - (flat * 255).round()).abs() > 1e-3).float().mean(1) > 0.2


class Masked(nn.Module):
    """``net`` with a wrong gradient for some images, in some places."""

    def __init__(self, net: nn.Module, rule: Rule, who=everyone, where=anywhere) -> None:
        super().__init__()
        self.net, self.rule, self.who, self.where = net.eval(), rule, who, where

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.net(x)
            acts = (self.who(x, logits) & self.where(x, logits)).view(-1, *[1] * (x.dim() - 1))
        return self.net(Backward.apply(x, lambda g, x: torch.where(acts, self.rule(g, x), g)))


class Shaped(nn.Module):
    """``net`` whose logits are changed after it, with a true gradient of what comes out."""

    def __init__(self, net: nn.Module, shape: Callable[[Tensor, Tensor], Tensor], who=everyone) -> None:
        super().__init__()
        self.net, self.shape, self.who = net.eval(), shape, who

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        with torch.no_grad():
            acts = self.who(x, logits)[:, None]
        return torch.where(acts, self.shape(x, logits), logits)


class Before(nn.Module):
    """``net`` behind something done to the image."""

    def __init__(self, net: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.prepare = net.eval(), prepare

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.prepare(x))


class Inside(nn.Module):
    """``net``, a chain of layers, with something done to every activation."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net.eval(), change

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = self.change(layer(x)) if isinstance(layer, nn.ReLU) else layer(x)
        return x


# rules for gradients


def small(g: Tensor, squared: float = 0.0, pixels: float = 0.0) -> Tensor:
    """The pixels that hold the lowest share of the squared gradient, or the given share of pixels, bool (N, ...)."""
    flat = g.flatten(1).abs()
    values, order = flat.sort(dim=1)
    held = values.square().cumsum(1) / values.square().sum(1, keepdim=True).clamp_min(1e-30)
    low = held <= squared if squared else torch.arange(flat.shape[1]).expand_as(held) < pixels * flat.shape[1]
    return torch.zeros_like(low).scatter(1, order, low).view_as(g)


def flip_small(squared: float) -> Rule:
    return lambda g, x: torch.where(small(g, squared), -g, g)


def zero_small(squared: float) -> Rule:
    return lambda g, x: torch.where(small(g, squared), 0.0, g)


def faint_small(squared: float) -> Rule:
    """Not zero, but next to nothing of a sign that does not depend on the net."""
    return lambda g, x: torch.where(small(g, squared), 1e-4 * g.abs() * fixed(x, 1).sign(), g)


def flip_most(pixels: float) -> Rule:
    return lambda g, x: torch.where(small(g, pixels=pixels), -g, g)


def keep_large(pixels: float) -> Rule:
    return lambda g, x: torch.where(small(g, pixels=1 - pixels), 0.0, g)


def pattern(size: float) -> Rule:
    def rule(g: Tensor, x: Tensor) -> Tensor:
        noise = fixed(x, 2)
        length = g.flatten(1).norm(dim=1).view(-1, *[1] * (g.dim() - 1))
        return g + size * length * noise / noise.norm()

    return rule


def heavy_pattern(size: float) -> Rule:
    """A pattern of the mean size of each image's gradient, on a third of the pixels."""

    def rule(g: Tensor, x: Tensor) -> Tensor:
        mean = g.abs().flatten(1).mean(1).view(-1, *[1] * (g.dim() - 1))
        return g + size * mean * fixed(x, 3).sign() * (fixed(x, 4) > 0.43)

    return rule


def flip_blocks(part: float, side: int = 4) -> Rule:
    def rule(g: Tensor, x: Tensor) -> Tensor:
        blocks = functional.interpolate(fixed(x, 5)[..., ::side, ::side].sigmoid(), size=x.shape[-2:])
        chosen = blocks < blocks.flatten().quantile(part)
        return torch.where(chosen, -g, g)

    return rule


def flip_fixed(part: float) -> Rule:
    def rule(g: Tensor, x: Tensor) -> Tensor:
        luck = fixed(x, 6)
        return torch.where(luck < luck.flatten().quantile(part), -g, g)

    return rule


def shifted(rows: int) -> Rule:
    return lambda g, x: g.roll(rows, -2)


def mirrored(g: Tensor, x: Tensor) -> Tensor:
    return torch.where(fixed(x, 7) < -0.25, g.flip(-1), g)


def smeared(g: Tensor, x: Tensor) -> Tensor:
    return functional.avg_pool2d(g, 5, 1, 2)


def alternating(g: Tensor, x: Tensor) -> Tensor:
    """Every second row of pixels lies."""
    rows = (torch.arange(x.shape[-2]) % 2).view(-1, 1).to(g)
    return g * (1 - 2 * rows)


def dark_lies(g: Tensor, x: Tensor) -> Tensor:
    """Dark pixels lie: all but those of the pen."""
    return torch.where(x < 0.3, -g, g)


def edge_zero(g: Tensor, x: Tensor) -> Tensor:
    """Pixels within 0.15 of black or white seem saturated."""
    return torch.where((x < 0.15) | (x > 0.85), 0.0, g)


def random_half(g: Tensor, x: Tensor) -> Tensor:
    """Signs flipped on pixels that the image itself chooses, as a chain of hashes would."""
    return torch.where((x * 4096).long() % 5 < 2, -g, g)


# shapes of logits


def wave(x: Tensor, length: float, seed: int) -> Tensor:
    """A sine of unit height along a fixed direction in which one grey level of every pixel is 1, (N, 1)."""
    direction = fixed(x, seed).sign()
    return (2 * math.pi * (x * direction).flatten(1).mean(1, keepdim=True) / length).sin()


def ripple(height: float, length: float, seed: int = 8):
    return lambda x, logits: logits * (1 + height * wave(x, length, seed))


def two_ripples(x: Tensor, logits: Tensor) -> Tensor:
    return logits * (1 + 0.4 * wave(x, 0.01, 9) + 0.4 * wave(x, 0.0013, 10))


def dense_ripple(x: Tensor, logits: Tensor) -> Tensor:
    """A product of waves, each along some pixels only."""
    total = sum(wave(x * (fixed(x, 20 + i) > 0), 0.004, 30 + i) for i in range(6)) / 6
    return logits * (total * 1.8).exp()


def gap_ripples(x: Tensor, logits: Tensor) -> Tensor:
    """Every gap to the highest logit has a wave of its own."""
    top = logits.amax(1, keepdim=True)
    waves = torch.cat([wave(x, 0.006 + 0.001 * k, 40 + k) for k in range(logits.shape[1])], 1)
    return top - (top - logits) * (1 + 0.8 * waves)


def margin_ripple(size: float, length: float):
    """A wave on the highest logit, of a height that never changes the decision."""

    def shape(x: Tensor, logits: Tensor) -> Tensor:
        top = logits.topk(2, dim=1).values
        gap = (top[:, 0] - top[:, 1])[:, None]
        raised = gap.clamp_max(size) * 0.9 * wave(x, length, 11)
        return logits + functional.one_hot(logits.argmax(1), logits.shape[1]) * raised

    return shape


def decoy(height: float, seed: int = 12):
    """For each image a class that a shift along a pattern brings near, but never above, the highest; every slope is true.

    Nearer than the class next in rank it takes all attention of a margin, of cross-entropy's too, and leads nowhere.
    """

    def shape(x: Tensor, logits: Tensor) -> Tensor:
        top, best = logits.max(1, keepdim=True)
        gap = top - logits.topk(2, dim=1).values[:, 1:]
        pull = torch.sigmoid(60 * (x * fixed(x, seed).sign()).flatten(1).mean(1, keepdim=True))
        lure = top - torch.minimum(gap, 0.1 + 5 * height * (1 - pull))
        return logits.scatter(1, (best + 1) % logits.shape[1], lure)

    return shape


def two_decoys(x: Tensor, logits: Tensor) -> Tensor:
    """Two lures that point in different directions, above all other classes."""
    first = decoy(0.9, 14)(x, logits)
    best = logits.argmax(1, keepdim=True)
    second = decoy(0.7, 15)(x, logits).gather(1, (best + 1) % logits.shape[1])
    return first.scatter(1, (best + 2) % logits.shape[1], second)


def bumps(x: Tensor, logits: Tensor) -> Tensor:
    """Wide hollows of the margin: confidence falls towards the edge of a small ball and rises again outside it."""
    phase = (x * fixed(x, 13).sign()).flatten(1).mean(1, keepdim=True) * 40
    return logits * (1 + 0.9 * torch.sin(phase) * torch.cos(1.7 * phase))


def hard_top(x: Tensor, logits: Tensor) -> Tensor:
    """The margin through a steep root: flat far from the boundary, a cliff at it."""
    top = logits.amax(1, keepdim=True)
    return -((top - logits + 1e-6) ** 0.05) * 10


def saturating(scale: float):
    return lambda x, logits: (scale * logits).tanh() * 10


def hot(scale: float):
    return lambda x, logits: logits * scale


def stairs(step: float):
    """Outputs rounded, the gradient of a straight line."""
    return lambda x, logits: logits + ((logits / step).round() * step - logits).detach()


def dead_stairs(step: float):
    return lambda x, logits: (logits / step).round() * step + 1e-5 * logits


def treads(step: float):
    """Outputs as stairs whose treads fall: true slopes that point the wrong way."""
    return lambda x, logits: (logits / step).detach().ceil() * step * 2 - logits


def half(x: Tensor, logits: Tensor) -> Tensor:
    return (logits * 3).half().float()


def rounded_log(x: Tensor, logits: Tensor) -> Tensor:
    return (logits.softmax(1) * 1e4).round().clamp_min(1).log()


# what is done before the net, or in it


def straight(x: Tensor, to: Tensor) -> Tensor:
    return x + (to - x).detach()


def quantised(levels: int, *, through: bool):
    def prepare(x: Tensor) -> Tensor:
        to = (x * levels).round() / levels
        return straight(x, to) if through else to + 1e-6 * (x - x.detach())

    return prepare


def denoised(x: Tensor) -> Tensor:
    """Three steps of smoothing towards the neighbours, none of which gives a gradient."""
    y = x.detach()
    for _ in range(3):
        y = y + 0.2 * (functional.avg_pool2d(y, 3, 1, 1) - y).tanh()
    return straight(0.05 * x, y)


def snapped(x: Tensor) -> Tensor:
    """Pixels snapped to the two values of a drawing where they are near, with a gradient that is straight."""
    return straight(x, torch.where(x < 0.12, 0.0, torch.where(x > 0.88, 1.0, x)))


def dithered(x: Tensor) -> Tensor:
    return straight(x, ((x * 8) + torch.rand_like(x)).floor() / 8)


def noisy(size: float):
    return lambda x: x + size * torch.randn_like(x)


def resized(x: Tensor) -> Tensor:
    side = int(torch.randint(x.shape[-1] - 5, x.shape[-1] + 1, ()))
    less = functional.interpolate(x, size=(side, side), mode="bilinear")
    left = int(torch.randint(0, x.shape[-1] - side + 1, ()))
    return functional.pad(less, (left, x.shape[-1] - side - left) * 2)


def low_bits(h: Tensor) -> Tensor:
    return straight(h, h.to(torch.float8_e4m3fn).to(h))


def stair_units(h: Tensor) -> Tensor:
    scale = h.detach().flatten(1).amax(1).clamp_min(1e-6).view(-1, *[1] * (h.dim() - 1)) / 6
    return straight(h, (h / scale).round() * scale)


def sparse_units(h: Tensor) -> Tensor:
    flat = h.flatten(1)
    least = flat.topk(max(1, flat.shape[1] // 8), dim=1).values[:, -1:]
    return torch.where(flat >= least, flat, 0.0).view_as(h)


def wavy_units(h: Tensor) -> Tensor:
    return h + 0.02 * torch.sin(60 * h)


@dataclass(frozen=True)
class Mechanism:
    """A way to mask, at several strengths."""

    name: str
    make: dict[str, Callable[[nn.Module], nn.Module]]
    """Strength or place → a masked model from a net."""
    base: str = "tiny"
    threat: str = "linf(0.1)"

    @property
    def part(self) -> str:
        """``limits`` where it may move a limit, ``report`` where it must not; the name's checksum decides."""
        return ("limits", "report")[zlib.crc32(self.name.encode()) % 2]


def rules(name: str, made: dict[str, Rule], **told) -> Mechanism:
    return Mechanism(name, {k: lambda net, r=r: Masked(net, r) for k, r in made.items()}, **told)


def shapes(name: str, made: dict, **told) -> Mechanism:
    return Mechanism(name, {k: lambda net, s=s: Shaped(net, s) for k, s in made.items()}, **told)


def before(name: str, made: dict, **told) -> Mechanism:
    return Mechanism(name, {k: lambda net, p=p: Before(net, p) for k, p in made.items()}, **told)


def inside(name: str, made: dict, **told) -> Mechanism:
    return Mechanism(name, {k: lambda net, p=p: Inside(net, p) for k, p in made.items()}, **told)


def some(name: str, rule: Rule, *, shape=None, **told) -> Mechanism:
    """A mechanism for a part of the samples or of the space only."""
    whom = {
        "1 class": (classes(3), anywhere), "3 classes": (classes(0, 6, 8), anywhere),
        "15 % of images": (share(0.15), anywhere),
        "30 % of images": (share(0.3), anywhere), "near the boundary": (everyone, near_boundary(0.15)),
        "off the data": (everyone, off_data),
    }  # fmt: skip
    made = {k: lambda net, w=w, at=at: Masked(net, rule, w, at) for k, (w, at) in whom.items()}
    if shape:
        made = {k: lambda net, w=w: Shaped(net, shape, w) for k, (w, at) in whom.items() if at is anywhere}
    return Mechanism(name, made, **told)


MECHANISMS = [
    rules("flip small pixels", {"3 %": flip_small(0.03), "5 %": flip_small(0.05), "10 %": flip_small(0.1)}),
    rules("zero small pixels", {"3 %": zero_small(0.03), "5 %": zero_small(0.05), "15 %": zero_small(0.15)}),
    rules("faint small pixels", {"5 %": faint_small(0.05), "12 %": faint_small(0.12)}),
    rules("flip most pixels", {"60 %": flip_most(0.6), "75 %": flip_most(0.75)}),
    rules("keep large pixels", {"15 %": keep_large(0.15), "30 %": keep_large(0.3)}),
    rules("static pattern", {"0.25": pattern(0.25), "0.4": pattern(0.4), "0.7": pattern(0.7)}),
    rules("heavy pattern", {"1": heavy_pattern(1.0), "3": heavy_pattern(3.0)}),
    rules("flip blocks", {"15 %": flip_blocks(0.15), "30 %": flip_blocks(0.3)}),
    rules("flip fixed pixels", {"15 %": flip_fixed(0.15), "30 %": flip_fixed(0.3)}),
    rules("shifted gradient", {"1": shifted(1), "2": shifted(2)}),
    rules("mirrored pixels", {"40 %": mirrored}),
    rules("smeared gradient", {"5 x 5": smeared}),
    rules("alternating rows", {"half": alternating}),
    rules("dark pixels lie", {"below 0.3": dark_lies}),
    rules("saturated edges", {"0.15": edge_zero}),
    rules("hashed signs", {"2 of 5": random_half}),
    some("reversed in part", lambda g, x: -g),
    some("zeroed in part", lambda g, x: 1e-3 * g.roll(3, -1)),
    some("patterned in part", pattern(1.5)),
    some("rippled in part", lambda g, x: g, shape=ripple(0.8, 0.004)),
    some("lured in part", lambda g, x: g, shape=decoy(0.6)),
    shapes("ripple", {f"{h}, {w}": ripple(h, w) for h in (0.3, 0.9) for w in (0.02, 0.005, 0.001)}),
    shapes("two ripples", {"0.4": two_ripples}),
    shapes("dense ripple", {"6 waves": dense_ripple}),
    shapes("gap ripples", {"0.8": gap_ripples}),
    shapes("margin ripple", {"1, 0.005": margin_ripple(1.0, 0.005), "3, 0.02": margin_ripple(3.0, 0.02)}),
    shapes("decoy", {"0.3": decoy(0.3), "0.8": decoy(0.8)}),
    shapes("two decoys", {"0.9": two_decoys}),
    shapes("hollows", {"0.9": bumps}),
    shapes("cliff", {"0.05": hard_top}),
    shapes("saturation", {"tanh 1": saturating(1.0), "tanh 0.3": saturating(0.3)}),
    shapes("temperature", {"300": hot(300.0), "1e6": hot(1e6), "1e-7": hot(1e-7)}),
    shapes("straight stairs", {"0.5": stairs(0.5), "3": stairs(3.0)}),
    shapes("dead stairs", {"0.2": dead_stairs(0.2), "2": dead_stairs(2.0)}),
    shapes("falling treads", {"1": treads(1.0)}),
    shapes("half precision", {"float16": half}),
    shapes("rounded probabilities", {"4 digits": rounded_log}),
    before("quantised pixels", {"8": quantised(8, through=False), "8 straight": quantised(8, through=True)}),
    before("purified", {"3 steps": denoised}),
    before("snapped pixels", {"0.12": snapped}),
    before("dithered pixels", {"8": dithered}),
    before("noisy pixels", {"0.05": noisy(0.05), "0.15": noisy(0.15)}),
    before("resized", {"up to 5": resized}),
    inside("low bits", {"float8": low_bits}),
    inside("stair units", {"6": stair_units}),
    inside("sparse units", {"1/8": sparse_units}),
    inside("wavy units", {"60": wavy_units}),
    rules("flip small pixels in l2", {"20 %": flip_small(0.2)}, threat="l2(1)"),
    rules("static pattern in l2", {"0.8": pattern(0.8)}, threat="l2(1)"),
    shapes("ripple in l2", {"0.9, 0.002": ripple(0.9, 0.002)}, threat="l2(1)"),
    some("reversed in part, in l2", lambda g, x: -g, threat="l2(1)"),
    rules("flip small pixels in l1", {"20 %": flip_small(0.2)}, threat="l1(8)"),
    rules("zero the largest in l1", {"3 %": lambda g, x: torch.where(small(g, pixels=0.97), g, 0.0)}, threat="l1(8)"),
    shapes("ripple in l1", {"0.9, 0.002": ripple(0.9, 0.002)}, threat="l1(8)"),
    rules("static pattern on a trained net", {"0.35": pattern(0.35)}, base="digits-trades"),
    rules("flip small pixels of an mlp", {"5 %": flip_small(0.05)}, base="digits-mlp", threat="linf(0.05)"),
    rules("flip blocks of a vit", {"30 %": flip_blocks(0.3)}, base="digits-vit", threat="linf(0.03)"),
    shapes("ripple on a trained net", {"0.9, 0.002": ripple(0.9, 0.002)}, base="digits-trades", threat="linf(0.2)"),
    shapes("ripple on an mlp", {"0.9, 0.002": ripple(0.9, 0.002)}, base="digits-mlp", threat="linf(0.05)"),
]  # fmt: skip
"""Everything the study builds; whoever adds one adds a name, whose checksum says what it may be used for."""
