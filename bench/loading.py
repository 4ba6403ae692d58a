"""Images and models for use in Python: what a run would load, as tensors and a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robench import zoo
from robench.builders.apart import read_apart
from robench.data.dataset import subset
from robench.models.load import load_model as read_model
from robench.workshop import read_split


def load_data(
    source: str = "digits", *, split: str = "test", limit: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Images and labels of a data set, named as for ``robench run --data``.

    Args:
        source: ``digits``, ``cifar10(root='data')``, ``folder:PATH``, ``npz:PATH``.
        split: ``test``, ``train`` or ``validation``; the others hold no test images.
        limit: At most this many, a stratified sample drawn with ``seed``: the images that a run with this limit looks at.
        seed: Of that sample.

    Returns:
        Images (N, C, H, W), float32 in [0, 1], and labels (N,), int64.

    Raises:
        ConfigError: Unknown name or split.
        DataError: Missing or damaged data.

    Example:
        >>> import robench
        >>> x, y = robench.load_data("digits", limit=20)
        >>> x.shape, y.shape
        (torch.Size([20, 1, 32, 32]), torch.Size([20]))
    """
    data = read_split(source, split) if split == "test" else read_apart(source, split)
    part = data if limit is None or limit >= len(data) else subset(data, limit, seed=seed)
    return part.images(), part.labels


def load_model(source: str, **options: Any) -> nn.Module:
    """A model of the zoo by its name, or a model file or factory.

    Args:
        source: ``digits-pgd-at`` and other names of ``robench list models``; FILE.safetensors, .pt, .pth, .pth.tar, .pt2 or
            ``path.py:factory``.
        options: For files, those of ``robench.models.load.load_model``: ``arch``, ``mean``, ``std``, ``input_range``,
            ``num_classes``, ``shape``, ``trust``, ``sha256``.

    Returns:
        The module on the CPU, in eval mode; it takes pixels (N, C, H, W) in [0, 1] and returns logits (N, K).

    Raises:
        ConfigError: Unknown name or architecture.
        ModelError: A file that is missing, damaged or does not fit.

    Example:
        >>> import robench
        >>> model = robench.load_model("digits-pgd-at")
        >>> x, y = robench.load_data("digits", limit=20)
        >>> model(x).shape
        torch.Size([20, 10])
    """
    if source in zoo.NAMES and not options:
        return zoo.load(source)
    return read_model(source, **options)[0]
