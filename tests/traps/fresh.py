"""Traps of other kinds, written after every threshold was fixed: no threshold has seen them, and none is moved for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from robench.data._digits import digits
from robench.ops.random import Draws


class Trap(nn.Module):
    """A model that answers as ``net`` nearly does, in its own way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval()


def layers(net: nn.Module) -> list[nn.Module]:
    """The layers of a net that is a sequence at heart."""
    return [m for m in net.modules() if not list(m.children())]


def on_grid(x: Tensor) -> Tensor:
    """Whether most pixels of an image lie where those of the digits lie, (N, 1, 1, 1)."""
    levels = x * 1024
    return (((levels - levels.round()).abs() < 0.05).float().flatten(1).mean(1) > 0.5).view(-1, 1, 1, 1)


class Spoilt(torch.autograd.Function):
    """The identity, whose gradient goes through ``change``, which may look at the place."""

    @staticmethod
    def forward(ctx, x: Tensor, change) -> Tensor:
        ctx.change = change
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.change(gradient, *ctx.saved_tensors), None


class FlippedInside(Trap):
    """Behind the first activation every second unit's gradient has the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        first = True
        for layer in layers(self.net):
            x = layer(x)
            if first and isinstance(layer, nn.ReLU):
                x, first = Spoilt.apply(x, self.turned), False
        return x

    @staticmethod
    def turned(gradient: Tensor, x: Tensor) -> Tensor:
        units = torch.arange(gradient.shape[1], device=x.device) % 2 * 2 - 1
        return gradient * units.view(1, -1, *[1] * (gradient.dim() - 2))


class FlippedAfar(Trap):
    """The gradient is honest on the data's own pixels and turned round everywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Spoilt.apply(x, lambda g, at: torch.where(on_grid(at), g, -g)))


class Smeared(Trap):
    """The gradient is blurred over 7 x 7 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Spoilt.apply(x, lambda g, at: functional.avg_pool2d(g, 7, 1, 3)))


class Sparse(Trap):
    """Only the largest hundredth of the gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Spoilt.apply(x, self.largest))

    @staticmethod
    def largest(gradient: Tensor, x: Tensor) -> Tensor:
        sizes = gradient.abs().flatten(1)
        least = sizes.topk(max(1, sizes.shape[1] // 100)).values[:, -1]
        return torch.where(gradient.abs() >= least.view(-1, 1, 1, 1), gradient, 0.0)


class HalfStatic(Trap):
    """The gradient and twice as much noise, the same at every look at the same place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(Spoilt.apply(x, self.drowned))

    @staticmethod
    def drowned(gradient: Tensor, x: Tensor) -> Tensor:
        keys = ((x.detach().flatten(1).double().sum(1)) * 2**20).long() & 0xFFFFFFFF
        noise = Draws(11, keys).normal("static", x.shape[1:]).to(gradient)
        size = gradient.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        return gradient + 2 * size.view(-1, 1, 1, 1) * noise


class Bordered(Trap):
    """No gradient passes on a border of eight pixels."""

    def forward(self, x: Tensor) -> Tensor:
        inside = functional.pad(torch.ones_like(x[..., 8:-8, 8:-8]), (8, 8, 8, 8))
        return self.net(x * inside + (x * (1 - inside)).detach())


class SomeDetached(Trap):
    """The gradient is cut on every second image, which the image itself decides."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x.detach().flatten(1).double().sum(1) * 3).long() % 2 == 0
        return self.net(torch.where(chosen.view(-1, 1, 1, 1), x.detach(), x)) + 0 * x.sum()


class OddRows(Trap):
    """The gradient is cut on every second row of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        odd = torch.arange(len(x), device=x.device) % 2 == 1
        return self.net(torch.where(odd.view(-1, 1, 1, 1), x.detach(), x)) + 0 * x.sum()


class ColdDouble(Trap):
    """Logits a million times sharper, normalised in double precision and handed over in single."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e6 * self.net(x).double()).log_softmax(1).float()


class Tanh(Trap):
    """50 tanh(logits): equal to the last bit wherever two classes are likely."""

    def forward(self, x: Tensor) -> Tensor:
        return 50 * torch.tanh(self.net(x))


class Rounded(Trap):
    """Logits rounded to a quarter, no slope at all."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.net(x) * 4).round() / 4 + 0 * x.flatten(1)[:, :1]


class Bfloat(Trap):
    """Pixels and logits rounded to 8 bits of mantissa, the gradient honest but for the rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return (3 * self.net(x.bfloat16().float())).bfloat16().float()


class Dropping(Trap):
    """A third of all hidden units is dropped at every call."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in layers(self.net):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x = functional.dropout(x, 0.3, training=True)
        return x


class Skipping(Trap):
    """Stochastic depth: at every call each image passes a blur before the net or not."""

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return self.net(torch.where(skip, x, functional.avg_pool2d(x, 3, 1, 1)))


class Turning(Trap):
    """A random rotation by at most 12 degrees at every call."""

    def forward(self, x: Tensor) -> Tensor:
        angle = (torch.rand(len(x), device=x.device) - 0.5) * 0.42
        rows = torch.stack([angle.cos(), -angle.sin(), 0 * angle, angle.sin(), angle.cos(), 0 * angle], 1)
        grid = functional.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
        return self.net(functional.grid_sample(x, grid, align_corners=False))


class EveryThird(Trap):
    """Every third call answers for the blurred image: no draw, no stored image, but a count."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(functional.avg_pool2d(x, 3, 1, 1) if self.calls % 3 == 0 else x)


class DeadZone(Trap):
    """Dark pixels below 0.08 are black and bright ones above 0.92 white: flat there, and passed by at the ball's edge."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.where(x < 0.08, 0.0, torch.where(x > 0.92, 1.0, x)))


class Sawtooth(Trap):
    """Pixels on a staircase whose treads fall: every slope is true, and points the wrong way."""

    cells = 24

    def forward(self, x: Tensor) -> Tensor:
        cell = (x.detach() * self.cells).floor()
        return self.net((2 * cell + 1) / self.cells - x)


class Wrapped(Trap):
    """Hidden activations wound round: a wave on top of each, small in height and steep."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in layers(self.net):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                x = x + torch.remainder(-40 * x, 1) / 8
        return x


class Sorted(Trap):
    """Every pixel takes the value of the pixel next in rank: nearly the same image, and the gradient of other pixels."""

    def forward(self, x: Tensor) -> Tensor:
        values, order = x.flatten(1).sort(dim=1, stable=True)
        return self.net(values.roll(1, 1).gather(1, order.argsort(dim=1)).view_as(x))


class Neighbours(Trap):
    """The vote of the five nearest training images in feature space, and a faint slope."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        data = digits(split="train")
        self.register_buffer("labels", data.labels)
        with torch.no_grad():
            self.register_buffer("bank", self.net(data.images()))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        nearest = torch.cdist(logits.detach(), self.bank).topk(5, largest=False).indices
        return functional.one_hot(self.labels[nearest], 10).float().sum(1) + 1e-3 * logits.roll(1, 1)


class Rejecter(Trap):
    """Off the data's own pixels the same answer for all images of a class: nothing to follow there."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        constant = 5 * functional.one_hot(logits.argmax(1), 10).float() + 0.1
        return torch.where(on_grid(x).flatten(1), logits, constant + 0 * logits)


class Voting(Trap):
    """Nine shifted looks, each a nearly hard vote."""

    def forward(self, x: Tensor) -> Tensor:
        looks = [x.roll((i, j), (-2, -1)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return torch.stack([(100 * self.net(look)).softmax(1) for look in looks]).sum(0)


TRAPS = [v for v in vars().copy().values() if isinstance(v, type) and issubclass(v, Trap) and v is not Trap]
