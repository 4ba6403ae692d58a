"""Weights on a grid of few levels, and the file in which they ship."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.compress._layers import Layer, is_layer
from robench.errors import ModelError, must

_KEY = "weight_grid"
_FILE = "model.safetensors"
_CODES, _SCALES = "#codes", "#scales"


@dataclass(frozen=True)
class Grid:
    """How the weights of a layer are rounded: symmetric levels, one scale per group of consecutive weights of an output."""

    bits: int
    group: int
    """Weights that share a scale; 0 is the whole output channel."""

    @property
    def top(self) -> int:
        """The highest level; levels are -top..top."""
        return int(2 ** (self.bits - 1) - 1)

    def grouped(self, weight: Tensor) -> Tensor:
        """Weights (out, ...) as (out, groups, group), filled up with zeros."""
        flat = weight.flatten(1)
        size = self.group or flat.shape[1]
        return nn.functional.pad(flat, (0, -flat.shape[1] % size)).unflatten(1, (-1, size))

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int8 (out, groups, group) in -top..top and scales float32 (out, groups, 1) of weights (out, ...)."""
        groups = self.grouped(weight.detach().float())
        peak = groups.abs().amax(-1, keepdim=True)
        scales = torch.where(peak > 0, peak / self.top, 1.0)
        return (groups / scales).round().clamp(-self.top, self.top).to(torch.int8), scales

    def decode(self, codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
        """Weights float32 of a shape (out, ...)."""
        flat = (codes.float() * scales).flatten(1)
        return flat[:, : shape[1:].numel()].reshape(shape)


@dataclass(frozen=True)
class Packed:
    """What a file holds in place of one weight."""

    grid: Grid
    codes: Tensor
    scales: Tensor


def attach(layer: Layer, packed: Packed) -> None:
    """Keep with a layer what a file holds of its weight; the weight must be what that decodes to.

    The file is made of these codes, not of the rounded weights: encoding twice could move a scale's last bit.
    """
    layer.__dict__[_KEY] = packed


def grid_layers(model: nn.Module) -> dict[str, tuple[Layer, Packed]]:
    """Name of a weight in the state → its layer and what a file holds of it; empty for a model that is not on a grid."""
    found: dict[str, tuple[Layer, Packed]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and is_layer(module) and _KEY in module.__dict__:
            found[f"{name}.weight".removeprefix(".")] = (module, module.__dict__[_KEY])
    return found


def pack(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the file that ships: weights on a grid as codes and scales, everything else as it is.

    4-bit codes stand two to a byte, the even one in the low half.

    Raises:
        ModelError: A weight on a grid was changed after it was rounded.
    """
    layers, tensors = grid_layers(model), {}
    for name, value in model.state_dict().items():
        if name not in layers:
            tensors[name] = value.detach().cpu().contiguous()
            continue
        layer, packed = layers[name]
        if not torch.equal(packed.grid.decode(packed.codes, packed.scales, layer.weight.shape), layer.weight.detach().cpu()):
            raise ModelError(must(f"the weights of {name}", "as they were rounded", "others", "quantise after training"))
        codes = packed.codes.flatten(1)[:, : layer.weight.shape[1:].numel()]
        tensors[name + _CODES] = _halves(codes) if packed.grid.bits == 4 else codes.contiguous()
        tensors[name + _SCALES] = packed.scales[..., 0].contiguous()
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state of a model from its packed tensors; the model says shapes and grids."""
    state = {name: value for name, value in tensors.items() if _CODES not in name and _SCALES not in name}
    for name, (layer, packed) in grid_layers(model).items():
        shape = layer.weight.shape
        codes = tensors[name + _CODES]
        codes = _whole(codes, shape) if packed.grid.bits == 4 else codes
        groups = packed.grid.grouped(codes)
        state[name] = packed.grid.decode(groups, tensors[name + _SCALES][..., None], shape)
    return state


def _halves(codes: Tensor) -> Tensor:
    """Codes in -8..7, int8 (out, n), two to a byte: uint8 (ceil(out * n / 2),)."""
    flat = codes.flatten() + 8
    flat = nn.functional.pad(flat, (0, len(flat) % 2)).to(torch.uint8)
    return flat[0::2] | (flat[1::2] << 4)


def _whole(halves: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of ``_halves``: int8 (out, n)."""
    flat = torch.stack([halves & 15, halves >> 4], dim=1).flatten()[: shape.numel()]
    return (flat.to(torch.int8) - 8).reshape(shape[0], -1)


def packed_files(model: nn.Module) -> dict[str, int]:
    """Name and bytes of the file that holds a model with weights on a grid; empty for another model."""
    from safetensors.torch import save

    return {_FILE: len(save(pack(model)))} if grid_layers(model) else {}


def packed_bits(model: nn.Module) -> dict[str, int]:
    """Bits of the weights that are on a grid, by parameter name."""
    return {name: packed.grid.bits for name, (_, packed) in grid_layers(model).items()}
