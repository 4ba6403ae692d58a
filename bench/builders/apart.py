"""Images that a compression may look at: none of them a test image."""

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
_WHAT = "images that a compression calibrates or trains on"
_EXPECTED = "apart from the test images"


def apart_from_test(artifact: Artifact, context: Context) -> Dataset:
    """The images of an artifact, once it is known that none of them is a test image of the same source.

    Checked by lineage (the split they are taken from) and by content (8-bit pixels). Large collections hold a few images
    twice, once in each split: up to 1 % are left out, and the log says how many.

    Raises:
        DataError: They are of the test split, or share more images with it.
    """
    source = _source_of(artifact)
    if source.get("split") == "test":
        raise DataError(must(_WHAT, _EXPECTED, "the split 'test'", "use the training split"))
    data: Dataset = load(artifact, context)
    if "test" in data.spec.splits and "source" in source:
        return _without(data, _test_hashes(str(source["source"])), where=str(source["source"]))
    return data


def _without(data: Dataset, test: frozenset[bytes], *, where: str) -> Dataset:
    """The data without the few images that are test images too."""
    apart = torch.tensor([found not in test for found in image_hashes(data)])
    shared = int((~apart).sum())
    if shared > _NATURAL * len(data):
        got = f"{shared} of {len(data)} that are also in the test split of {where}"
        raise DataError(must(_WHAT, _EXPECTED, got, "remove them from the training split"))
    if shared:
        log.warning("%d training images left out: they are also in the test split of %s", shared, where)
    return data.take(apart.nonzero().flatten()) if shared else data


def _source_of(artifact: Artifact) -> dict[str, Any]:
    """Arguments of the ``images`` artifact that data come from."""
    while artifact.builder.name != "images" and artifact.inputs:
        artifact = artifact.inputs[0]
    return artifact.builder.kwargs


@lru_cache(maxsize=2)
def _test_hashes(source: str) -> frozenset[bytes]:
    return frozenset(image_hashes(read_split(source, "test")))
