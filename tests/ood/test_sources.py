from __future__ import annotations

import pytest
import torch

from robench.data._digits import digits
from robench.errors import ConfigError, DataError
from robench.ood import TABLE_SOURCES
from robench.ood._glyphs import STROKES
from robench.ops.random import Draws
from robench.registry import Table
from robench.spec import Ref

SOURCES = Table("ood_sources", TABLE_SOURCES)
SHAPES = [(1, 32, 32), (3, 32, 32), (3, 17, 40), (1, 8, 8)]


def drawn(name: str, x: torch.Tensor, *, seed: int = 0, ids=None) -> torch.Tensor:
    ref = SOURCES.resolve(Ref.parse(name))
    given = torch.arange(len(x)) if ids is None else ids
    return SOURCES[ref.name].load()(x, draws=Draws(seed, given), **ref.kwargs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*TABLE_SOURCES, "glyphs(detail=8)"])
def test_images_of_any_shape_are_float_in_the_unit_range_and_do_not_depend_on_company(name, shape):
    x = (torch.rand(6, *shape, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    images = drawn(name, x)
    assert images.shape == x.shape and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close((images * 255).round() / 255, images, rtol=0, atol=1e-6)
    ids = torch.tensor([4, 1])
    assert torch.equal(drawn(name, x[ids], ids=ids), images[ids])
    assert torch.equal(drawn(name, x), images)
    if name != "inverted":
        assert not torch.equal(drawn(name, x, seed=1), images)
    assert len({i.numpy().tobytes() for i in images}) == 6


def test_glyphs_are_not_digits_and_look_like_the_data_they_stand_beside():
    assert len(STROKES) == 16 and not set(STROKES) & set("0123456789OILSZBGQ")
    own = digits().images()
    images = drawn("glyphs(detail=8)", own)
    coarse = torch.nn.functional.avg_pool2d(images, 4)
    assert abs(float(images.mean() - own.mean())) < 0.1 and abs(float(images.std() - own.std())) < 0.1
    assert float(coarse.amax((1, 2, 3)).min()) > 0.4
    signs = Draws(0, torch.arange(500)).integers("glyphs/sign", (), 16).bincount()
    assert signs.min() > 10


def test_a_sharp_vertical_stroke_is_where_it_was_drawn():
    from robench.ood._glyphs import _ink

    ink = _ink(torch.tensor([[[[0.5, 0.0], [0.5, 1.0]]]]), torch.tensor([0.25]), (8, 8))
    assert ink[0, 4].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_inverted_and_scrambled_keep_what_they_should():
    x = digits().images()[:5]
    assert torch.equal(drawn("inverted", x), 1 - x)
    mixed = drawn("scrambled(parts=3)", x)
    assert torch.equal(mixed.flatten(1).sort().values, x.flatten(1).sort().values) and not torch.equal(mixed, x)
    assert torch.equal(mixed[..., 30:], x[..., 30:])
    counted = torch.arange(64.0).reshape(1, 1, 8, 8)
    pieces = {p.flatten().sort().values.numpy().tobytes() for p in counted.unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 4, 4)}
    moved = drawn("scrambled(parts=2)", counted).unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 4, 4)
    assert {p.flatten().sort().values.numpy().tobytes() for p in moved} == pieces


@pytest.mark.parametrize("name", ["glyphs(detail=-1)", "scrambled(parts=1)", "scrambled(parts=9)"])
def test_options_that_cannot_be_are_refused(name):
    with pytest.raises(ConfigError, match="must be"):
        drawn(name, torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("name", TABLE_SOURCES)
def test_images_without_ids_are_refused(name):
    with pytest.raises(DataError, match="one id per image"):
        SOURCES[name].load()(torch.zeros(3, 1, 8, 8), draws=Draws(0, torch.arange(2)))
