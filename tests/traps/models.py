"""Models that look robust and are not, each around an honest net that knows nothing of it, and honest models beside them.

Every trap keeps (nearly) the net's answers on clean images and hides where they change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.ops.random import Draws


class Trap(nn.Module):
    """A model that answers as ``net`` does, in its own way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()


def blurred(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1)


class Thousandfold(Trap):
    """Logits x 1000: cross-entropy saturates in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * self.net(x)


class Millionth(Trap):
    """Logits near nothing on top of a large constant: differences are lost to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 + 1e-3 * self.net(x)


class WinnersTakeAll(Trap):
    """Only the largest tenth of every layer's activations pass (Xiao et al., ICLR 2020): gradients jump everywhere."""

    share = 0.1

    def forward(self, x: Tensor) -> Tensor:
        for layer in layers(self.net):
            x = self.winners(x) if isinstance(layer, nn.ReLU) else layer(x)
        return x

    def winners(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return torch.where(flat >= least, flat, 0.0).view_as(x)


class Thermometer(Trap):
    """Pixels as 16 stacked thresholds (Buckman et al., ICLR 2018), put together again: no gradient passes."""

    levels = 16

    def forward(self, x: Tensor) -> Tensor:
        steps = (torch.arange(self.levels, device=x.device) + 0.5) / self.levels
        return self.net((x[..., None] > steps).float().mean(-1))


class BitDepth(Trap):
    """Pixels rounded to 8 grey values, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 7).round() / 7)


class Hundredths(Trap):
    """Pixels rounded to 8 grey values, and a faint gradient of something else, so that none is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 7).round() / 7) + 1e-4 * blurred(x).flatten(1)[:, ::70][:, :10]


def cosines(size: int = 8) -> Tensor:
    """The orthonormal cosine basis of one block, (size, size)."""
    k, i = torch.arange(size)[:, None], torch.arange(size)
    basis = torch.cos(math.pi * (2 * i + 1) * k / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


class Jpeg(Trap):
    """Block cosine coefficients rounded to a grid, as JPEG does, without a gradient."""

    step = 0.15

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        basis = cosines().to(x)
        blocks = x.view(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
        grid = (basis @ blocks @ basis.T / self.step).round() * self.step
        return self.net((basis.T @ grid @ basis).transpose(3, 4).reshape(x.shape).clamp(0, 1))


def median(x: Tensor) -> Tensor:
    windows = functional.pad(x, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(-2).median(-1).values


class Median(Trap):
    """A 3 x 3 median of 8-bit pixels before the net, without a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(median((x.detach() * 255).to(torch.uint8).int()) / 255) + 0 * x.sum()


class Filtered(nn.Module):
    """No trap: a median with its own, sparse and right gradient."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(median(x))


class Noisy(Trap):
    """Fresh noise on every pixel at every call, and on nobody's seed."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x + 0.1 * torch.randn(x.shape, device=x.device)).clamp(0, 1))


class Resized(Trap):
    """A random shrink and a random place in the frame at every call (Xie et al., ICLR 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        small = int(torch.randint(side - 4, side, ()))
        left, top = (int(torch.randint(0, side - small + 1, ())) for _ in range(2))
        shrunk = functional.interpolate(x, size=(small, small), mode="bilinear", align_corners=False)
        return self.net(functional.pad(shrunk, (left, side - small - left, top, side - small - top)))


class Seeded(Trap):
    """Noise that the image itself seeds: two looks agree, and the neighbour of an image meets other noise."""

    def forward(self, x: Tensor) -> Tensor:
        words = (x.detach().flatten(1) * 2**24).long()
        key = (words * torch.arange(1, 2 * words.shape[1], 2, device=x.device)).sum(1)
        noise = Draws(7, key & 0xFFFFFFFF).uniform("seeded", x.shape[1:]).to(x) - 0.5
        return self.net((x + 0.3 * noise).clamp(0, 1))


class Softmaxed(Trap):
    """Probabilities instead of logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).softmax(1)


class Sharpened(Trap):
    """Probabilities of sharpened logits: 0 and 1 in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return (50 * self.net(x)).softmax(1)


class Saturated(Trap):
    """A sigmoid behind the logits, flat wherever the net is sure."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * torch.sigmoid(2 * self.net(x))


class OneHot(Trap):
    """The decision and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return functional.one_hot(logits.argmax(1), logits.shape[1]).float() + 0 * logits


class OneHotDecoy(Trap):
    """The decision, and a gradient that points anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        decoy = blurred(x).flatten(1)[:, ::70][:, :10]
        return 10 * functional.one_hot(logits.argmax(1), logits.shape[1]).float() + 1e-2 * decoy


class Boxed(Trap):
    """The gradient is cut inside a module."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.detach())


class Detached(Trap):
    """The true logits without their gradient, and a faint one of something else: every pass has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach() + 1e-6 * x.flatten(1)[:, :10]


class HalfDetached(Trap):
    """Every second column's gradient is hidden."""

    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[-1], device=x.device) % 2).to(x)
        return self.net(x * mask + (x * (1 - mask)).detach())


class Backward(torch.autograd.Function):
    """The identity, with a gradient that ``kind`` spoils."""

    @staticmethod
    def forward(ctx, x: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        ids = torch.arange(len(x), device=x.device)
        if ctx.kind == "flipped":
            return -gradient, None
        if ctx.kind == "signs":
            signs = Draws(3, ids).uniform("signs", x.shape[1:], step=int(x.sum() * 1e3) & 0xFFFF)
            return gradient * torch.where(signs.to(x) < 0.5, -1.0, 1.0), None
        if ctx.kind == "rolled":
            return gradient.roll((5, 5), (-2, -1)), None
        return gradient.abs().mean() * Draws(4, ids).normal("noise", x.shape[1:]).to(x), None


class Flipped(Trap):
    """The gradient's sign is turned round."""

    kind = "flipped"

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Backward.apply(x, self.kind))


class Signs(Flipped):
    """Every pixel's gradient gets a random sign."""

    kind = "signs"


class Rolled(Flipped):
    """The gradient is that of the image five pixels further."""

    kind = "rolled"


class Static(Flipped):
    """A gradient of noise."""

    kind = "static"


class WrongClass(Trap):
    """The gradient is right, for the class next to the one asked for."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        other = logits.roll(1, dims=1)
        return logits.detach() + other - other.detach()


class Crowd(Trap):
    """Adds something that only the set of images in the batch decides."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 10 * (x.mean() - 0.3) * torch.arange(10, device=x.device)


class BatchNormed(Trap):
    """Logits are normalised over the batch, as by a norm that stayed in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return (logits - logits.mean(0)) / (logits.std(0) + 1e-3)


class Holes(Trap):
    """NaN as soon as the image is not what a camera of 10 bits gives."""

    def forward(self, x: Tensor) -> Tensor:
        levels = x * 1024
        moved = (levels - levels.round()).abs().flatten(1).amax(1, keepdim=True) > 1e-3
        return torch.where(moved, torch.nan, self.net(x))


class NearData(Trap):
    """Where most pixels lie on the data's own grid, the gradient is cut; elsewhere it is honest."""

    def forward(self, x: Tensor) -> Tensor:
        levels = x * 128
        near = ((levels - levels.round()).abs() < 0.02).float().flatten(1).mean(1) > 0.5
        near = near.view(-1, 1, 1, 1)
        return self.net(torch.where(near, x.detach(), x)) + 0 * x.sum()


class Staircase(Trap):
    """Logits in steps of a tenth, with a faint slope: flat almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return (logits * 2).round() / 2 + 1e-5 * logits


class Requantised(Trap):
    """Hidden activations rounded to a coarse grid, which keeps distances; no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in layers(self.net):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                step = x.detach().flatten(1).amax(1).clamp_min(1e-6).view(-1, *[1] * (x.dim() - 1)) / 8
                x = (x / step).round() * step
        return x


class Ripple(Trap):
    """True logits times a fast wave of the image: the decision is kept, the slope is the wave's, and no gradient lies."""

    def forward(self, x: Tensor) -> Tensor:
        weights = Draws(5, torch.zeros(1, dtype=torch.int64, device=x.device)).normal("ripple", x.shape[1:]).to(x)
        wave = torch.sin(300 * (x * weights).flatten(1).sum(1, keepdim=True))
        return self.net(x) * (1 + 0.9 * wave)


class Watching(Trap):
    """Another answer as soon as a gradient is wanted: the label is defended while someone looks."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits.flip(1) if torch.is_grad_enabled() else logits


class Halved(Trap):
    """Computed in half precision at a scale that overflows into equal infinities, made finite again."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) * 2000).half().float().nan_to_num(posinf=65504, neginf=-65504)


class Clamped(Trap):
    """Logits clamped to a small range around the best."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return (logits - logits.amax(1, keepdim=True)).clamp_min(-1e-3)


class Rejecting(Trap):
    """Answers as at the last image seen whenever the new one is a near copy: a memory outside of the state."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        if self.seen:
            images, answers = (torch.cat(part) for part in zip(*self.seen, strict=True))
            gaps = torch.cdist(x.detach().flatten(1), images.flatten(1), p=math.inf)
            nearest = gaps.min(1)
            logits = torch.where((nearest.values < 0.12)[:, None], answers[nearest.indices] + 0 * logits, logits)
        if len(self.seen) < 4:
            self.seen.append((x.detach().clone(), logits.detach().clone()))
        return logits


class Distilled(Trap):
    """The decision, with the gradient of a soft and blurred copy of the net: small, smooth and nearly right."""

    def forward(self, x: Tensor) -> Tensor:
        hard = functional.one_hot(self.net(x).argmax(1), 10).float()
        return hard + 1e-3 * (0.01 * self.net(blurred(x))).softmax(1)


def layers(net: nn.Module) -> list[nn.Module]:
    """The layers of a net that is a sequence at heart."""
    return [m for m in net.modules() if not list(m.children())]
