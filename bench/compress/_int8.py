"""Post-training quantisation to integers, simulated in floating point with a straight-through gradient."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from robench.compress._layers import bake, is_layer, places
from robench.errors import ConfigError, ModelError, must
from robench.registry import facts

_BINS = 4096
_TAIL = 1e-4
_CHUNK = 64


@facts(version=1, simulated=True, needs="calibration", ranges={"bits": "2..8"})
def int8(model: nn.Module, *, calibration: Tensor, bits: int = 8) -> nn.Module:
    """A deep copy, in eval mode, whose Conv2d and Linear layers compute on quantised weights and inputs.

    Weights: symmetric, one scale per output channel. Inputs: affine, one scale per layer from the calibration images'
    0.01 and 99.99 percentiles. Biases and norms stay float; batch norms are not folded. The gradient passes straight
    through rounding and is 0 where an input is clipped. Bytes and time of a real integer model are not those of this one.

    Args:
        model: Left as it is.
        calibration: Training images (N, C, H, W) in [0, 1], N at least 1.
        bits: Of weights and inputs, 2 to 8.

    Raises:
        ConfigError: bits out of range, or calibration that is no batch of images.
        ModelError: No Conv2d or Linear layer, or inputs of a layer that are not finite.

    Source: Jacob et al., CVPR 2018, section 3; Nagel et al., arXiv 2106.08295, section 3 (ranges).
    """
    if not 2 <= bits <= 8:
        raise ConfigError(must("bits", "in 2..8", bits, "choose e.g. 8"))
    if calibration.ndim != 4 or len(calibration) == 0:
        raise ConfigError(must("calibration", "images (N, C, H, W)", tuple(calibration.shape), "pass training images"))
    twin = copy.deepcopy(model).eval()
    layers = bake(twin)
    wrapped = {id(layer): Quantised(layer, bits) for layer in layers}
    for weight in {id(layer.weight): layer.weight for layer in layers}.values():
        with torch.no_grad():
            weight.copy_(on_grid(weight, bits))
    for parent, name, layer in list(places(twin)):
        parent._modules[name] = wrapped[id(layer)]
    twin = wrapped[id(twin)] if is_layer(twin) else twin
    _calibrate(twin, list(wrapped.values()), calibration)
    return twin.eval()


def on_grid(weight: Tensor, bits: int) -> Tensor:
    """Weights (out, ...) rounded to multiples of max|w| / (2^(bits-1) - 1) of their output channel; same shape."""
    top = 2 ** (bits - 1) - 1
    peak = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
    scale = torch.where(peak > 0, peak / top, 1.0)
    return (weight / scale).round().clamp(-top, top) * scale


class Observer:
    """A layer's input range: the extremes in a first pass, percentiles of a histogram between them in a second."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.counts: Tensor | None = None
        self.binning = False

    def see(self, x: Tensor) -> None:
        """Take in one batch of inputs."""
        x = x.detach().float()
        if self.binning:
            counts = torch.histc(x, _BINS, self.low, self.high).double().cpu()
            self.counts = counts if self.counts is None else self.counts + counts
            return
        if not bool(x.isfinite().all()):
            raise ModelError(must("a layer's input on calibration images", "finite", "nan or inf", "check model and images"))
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    def span(self) -> tuple[float, float]:
        """(low, high) with the outer 0.01 % cut at each side, widened to hold 0; (0, 0) if the layer was not called."""
        if self.counts is None or self.low == self.high:
            return (min(self.low, 0.0), max(self.high, 0.0)) if self.low <= self.high else (0.0, 0.0)
        share = self.counts.cumsum(0) / self.counts.sum()
        first, last = int((share <= _TAIL).sum()), int((share < 1 - _TAIL).sum())
        width = (self.high - self.low) / _BINS
        return min(self.low + first * width, 0.0), max(self.low + (last + 1) * width, 0.0)


class Quantised(nn.Module):
    """A layer whose input is rounded to a grid; it observes inputs until ``freeze`` is called."""

    scale: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        self.layer = layer
        self.levels = 2**bits - 1
        self.observer: Observer | None = Observer()
        device = next(layer.parameters()).device
        self.register_buffer("scale", torch.ones(1, device=device))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32, device=device))

    def freeze(self) -> None:
        """Fix scale and zero point from what was observed."""
        if self.observer is None:
            return
        low, high = self.observer.span()
        step = (high - low) / self.levels or 1.0
        self.scale.fill_(step)
        self.zero.fill_(min(self.levels, max(0, round(-low / step))))
        self.observer = None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output on the input as rounded, clipped to the range."""
        if self.observer is not None:
            self.observer.see(x)
            return self.layer(x)
        scale = self.scale.float()  # the operator takes no other type, also in a float64 model
        return self.layer(torch.fake_quantize_per_tensor_affine(x.float(), scale, self.zero, 0, self.levels).to(x.dtype))


def _calibrate(twin: nn.Module, layers: list[Quantised], images: Tensor) -> None:
    images = images.to(layers[0].scale.device)
    with torch.no_grad():
        for binning in (False, True):
            for layer in layers:
                if layer.observer is not None:
                    layer.observer.binning = binning and layer.observer.low < layer.observer.high
            for chunk in images.split(_CHUNK):
                twin(chunk)
    for layer in layers:
        layer.freeze()
