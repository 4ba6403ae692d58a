"""The digits that come with scikit-learn: the one data set that needs no download."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from robench.data.checks import check_split
from robench.data.dataset import Dataset, from_arrays, stratified_order
from robench.registry import facts
from robench.spec import DatasetSpec

_SIZES = {"test": 500, "validation": 250, "train": 1047}
"""In the order they are cut from the stratified order; together all 1797."""

_SPEC = DatasetSpec(
    name="digits",
    classes=tuple("0123456789"),
    shape=(1, 32, 32),
    splits=("train", "validation", "test"),
    licence="CC BY 4.0",
    citation="Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI ML Repository 1998, doi:10.24432/C50P49",
)


@facts(version=1, classes=10, shape=(1, 32, 32), splits=("train", "validation", "test"), bundled=True)
def digits(*, split: str = "test") -> Dataset:
    """Handwritten digits of scikit-learn, 8x8 enlarged to 32x32: 1047 train, 250 validation, 500 test.

    The split is stratified and fixed. Ids are indices in scikit-learn's set. The enlargement's weights and pixels
    are dyadic, so that the float32 images are exact on every machine.

    Args:
        split: ``train``, ``validation`` or ``test``.

    Raises:
        ConfigError: Unknown split.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = torch.as_tensor(source.target, dtype=torch.int64)
    rows = _split_rows(labels)[check_split(split, _SPEC.splits)]
    small = torch.as_tensor(source.images, dtype=torch.float32)[rows, None] / 16
    large = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    return from_arrays(_SPEC, large, labels[rows], ids=rows)


def _split_rows(labels: Tensor) -> dict[str, Tensor]:
    order = stratified_order(labels, 0, "digits-split")
    ends = list(itertools.accumulate(_SIZES.values()))
    return {name: order[end - n : end].sort().values for (name, n), end in zip(_SIZES.items(), ends, strict=True)}
