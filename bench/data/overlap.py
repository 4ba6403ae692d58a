"""Whether two sets share images."""

from __future__ import annotations

import hashlib

from robench.data.dataset import Dataset

NATURAL = 0.01
"""Share of images that large collections hold twice by nature; more of them are a mistake."""
_AT_ONCE = 512


def image_hashes(data: Dataset) -> tuple[bytes, ...]:
    """SHA-256 of every image of a data set, of its shape and 8-bit pixels, in its order."""
    found = []
    for x, _, _ in data.batches(_AT_ONCE):
        for image in (x * 255).round().byte().numpy():
            found.append(hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest())
    return tuple(found)
