"""Images to train, fit or calibrate on: none of them a test image."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch

from robench.data.dataset import Dataset
from robench.data.overlap import image_hashes
from robench.errors import DataError, must
from robench.spec import Artifact, Context
from robench.workshop import load, read_split

log = logging.getLogger(__name__)

_NATURAL = 0.01
_WHAT = "images that something is trained, fitted or calibrated on"
_EXPECTED = "apart from the test images"


def apart_from_test(artifact: Artifact, context: Context) -> Dataset:
    """The images of an artifact, once it is known that they are not taken from a test split.

    Raises:
        DataError: They are, or share more images with it than ``without_test_images`` leaves out.
    """
    if _source_of(artifact).get("split") == "test":
        raise DataError(must(_WHAT, _EXPECTED, "the split 'test'", "use the training split"))
    data: Dataset = load(artifact, context)
    return data


def without_test_images(data: Dataset, source: str) -> Dataset:
    """Images of another split than the test split, without the few that are in the test split of ``source`` too.

    Compared by content (8-bit pixels). Large collections hold a few images twice, once in each split: up to 1 % are left
    out, and the log says how many.

    Raises:
        DataError: More are shared.
    """
    if "test" not in data.spec.splits:
        return data
    test = _test_hashes(source, read_split(source, "test").spec.sha256)
    apart = torch.tensor([found not in test for found in image_hashes(data)])
    shared = int((~apart).sum())
    if shared > _NATURAL * len(data):
        got = f"{shared} of {len(data)} that are also in the test split of {source}"
        raise DataError(must(_WHAT, _EXPECTED, got, "remove them from that split"))
    if shared:
        log.warning("%d images left out of what is trained or fitted on: the test split of %s has them too", shared, source)
    return data.take(apart.nonzero().flatten()) if shared else data


def _source_of(artifact: Artifact) -> dict[str, Any]:
    """Arguments of the ``images`` artifact that data come from."""
    while artifact.builder.name != "images" and artifact.inputs:
        artifact = artifact.inputs[0]
    return artifact.builder.kwargs


@lru_cache(maxsize=2)
def _test_hashes(source: str, content: str) -> frozenset[bytes]:
    """Hashes of a test split; ``content`` is its own, so that files which change are read anew."""
    return frozenset(image_hashes(read_split(source, "test")))
