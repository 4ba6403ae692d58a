"""Images to train, fit or calibrate on: none of them a test image."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch

from robench.data.dataset import Dataset
from robench.data.overlap import NATURAL, image_hashes
from robench.errors import DataError, must
from robench.spec import Artifact, Context
from robench.workshop import load, read_split

log = logging.getLogger(__name__)

_WHAT = "images that something is trained, fitted or calibrated on"
_EXPECTED = "apart from the test images"


def apart_from_test(artifact: Artifact, context: Context) -> Dataset:
    """The images of an artifact, once it is known that they are not taken from a test split.

    Raises:
        DataError: They are, or share more images with it than ``read_apart`` leaves out.
    """
    if _source_of(artifact).get("split") == "test":
        raise DataError(must(_WHAT, _EXPECTED, "the split 'test'", "use the training split"))
    data: Dataset = load(artifact, context)
    return data


def read_apart(source: str, split: str) -> Dataset:
    """A split other than the test split, without the few images that the test split of the same source holds too.

    Compared by content (8-bit pixels). Large collections hold a few images twice, once in each split: up to 1 % are left
    out, and the log says how many.

    Raises:
        DataError: More are shared.
    """
    data = read_split(source, split)
    if "test" not in data.spec.splits:
        return data
    apart = _apart(source, split, data.spec.sha256, read_split(source, "test").spec.sha256)
    return data if bool(apart.all()) else data.take(apart.nonzero().flatten())


@lru_cache(maxsize=4)
def _apart(source: str, split: str, content: str, test: str) -> torch.Tensor:
    """Which images of a split the test split does not have, bool (N,); the hashes stand for the files' contents."""
    known = frozenset(image_hashes(read_split(source, "test")))
    apart = torch.tensor([found not in known for found in image_hashes(read_split(source, split))])
    shared = int((~apart).sum())
    if shared > NATURAL * len(apart):
        got = f"{shared} of {len(apart)} that are also in the test split of {source}"
        raise DataError(must(_WHAT, _EXPECTED, got, "remove them from that split"))
    if shared:
        log.warning("%d images left out of what is trained or fitted on: the test split of %s has them too", shared, source)
    return apart


def _source_of(artifact: Artifact) -> dict[str, Any]:
    """Arguments of the ``images`` artifact that data come from."""
    while artifact.builder.name != "images" and artifact.inputs:
        artifact = artifact.inputs[0]
    return artifact.builder.kwargs
