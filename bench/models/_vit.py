"""A small vision transformer without class token: mean over the patches' tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.registry import facts


class Attention(nn.Module):
    """Multi-head self-attention, (N, T, D) -> (N, T, D).

    Source: Vaswani et al., NeurIPS 2017, section 3.2.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        return mixed


class Block(nn.Module):
    """A pre-norm transformer block, (N, T, D) -> (N, T, D)."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Patches -> tokens -> blocks -> mean -> logits."""

    def __init__(self, embed: nn.Conv2d, blocks: nn.Sequential, *, tokens: int, num_classes: int) -> None:
        super().__init__()
        dim = embed.out_channels
        self.embed, self.blocks = embed, blocks
        self.position = nn.Parameter(torch.zeros(1, tokens, dim))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


@facts(version=1)
def vit(
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    dim: int = 48,
    depth: int = 3,
    heads: int = 3,
    patch: int = 8,
    size: int = 32,
) -> nn.Module:
    """A vision transformer of (size / patch)^2 tokens; logits (N, num_classes).

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images (N, in_channels, size, size).
        dim: Width of a token, a multiple of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        patch: Height and width of a patch in pixels; divides ``size``.
        size: Height and width of the images in pixels.

    Raises:
        ConfigError: ``dim`` is no multiple of ``heads``, or ``size`` none of ``patch``.

    Source: Dosovitskiy et al., ICLR 2021, section 3.1; mean of tokens: Beyer et al., 2022 (arXiv 2205.01580).
    """
    if dim % heads:
        raise ConfigError(must("dim of vit", f"a multiple of heads={heads}", dim, f"e.g. dim={heads * 16}"))
    if size % patch:
        raise ConfigError(must("size of vit", f"a multiple of patch={patch}", size, "choose another patch"))
    embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
    blocks = nn.Sequential(*(Block(dim, heads, 2) for _ in range(depth)))
    return VisionTransformer(embed, blocks, tokens=(size // patch) ** 2, num_classes=num_classes)
