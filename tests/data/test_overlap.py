"""Hashes of images: equal for equal pixels, whatever they are stored as."""

import torch

from robench.data.dataset import from_arrays
from robench.data.overlap import image_hashes
from robench.spec import DatasetSpec

SPEC = DatasetSpec("memory", ("a", "b"), (1, 4, 4), ("test",))
PIXELS = torch.randint(0, 256, (700, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(700) % 2


def test_equal_images_have_equal_hashes_and_others_do_not():
    bytes_ = image_hashes(from_arrays(SPEC, PIXELS, LABELS))
    floats = image_hashes(from_arrays(SPEC, PIXELS.float() / 255, LABELS.flip(0)))
    assert bytes_ == floats and len(bytes_) == len(set(bytes_)) == 700
    order = torch.arange(700).flip(0)
    assert image_hashes(from_arrays(SPEC, PIXELS[order], LABELS)) == bytes_[::-1]
    wide = image_hashes(from_arrays(SPEC, PIXELS.reshape(700, 1, 2, 8), LABELS))
    assert not set(wide) & set(bytes_), "another shape is another image"
