"""Philox against its published vectors, and the promise that a sample's draws ignore its company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robench.ops.random import Draws, permutation, philox

WORD = 0xFFFFFFFF
IDS = torch.tensor([3, 0, 7, 2**40 + 1, 12])

# Random123 kat_vectors, philox4x32 10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD, WORD), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def slow_philox(counter, key):
    """The same rounds in Python integers, which never overflow."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & WORD, (p0 >> 32) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    words = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(w) for w in words) == expected
    assert slow_philox(counter, key) == expected


WORDS = st.integers(0, WORD)


@settings(max_examples=50, deadline=None)
@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_philox_equals_its_slow_twin(counter, key):
    words = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(w) for w in words) == slow_philox(counter, key)


@pytest.mark.parametrize("kind", ["bits", "uniform", "normal", "integers"])
def test_a_sample_draws_the_same_in_any_company(kind):
    def draw(ids):
        more = (10,) if kind == "integers" else ()
        return getattr(Draws(5, ids), kind)("start", (2, 3), *more, step=4)

    together = draw(IDS)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(draw(IDS[order]), together[order])
    for row in range(len(IDS)):
        assert torch.equal(draw(IDS[row : row + 1]), together[row : row + 1])


def test_indexing_draws_selects_samples():
    draws = Draws(1, IDS)
    assert torch.equal(draws[1:3].bits("s", (5,)), draws.bits("s", (5,))[1:3])


def test_every_part_of_the_counter_matters():
    base = Draws(0, IDS).bits("a", (8,))
    others = [Draws(1, IDS).bits("a", (8,)), Draws(0, IDS).bits("b", (8,)), Draws(0, IDS).bits("a", (8,), step=1)]
    others += [Draws(0, IDS + 1).bits("a", (8,)), Draws(0, IDS + 2**32).bits("a", (8,))]
    for other in others:
        assert (other == base).float().mean() < 0.01


def test_more_elements_extend_the_same_stream():
    draws = Draws(9, IDS)
    assert torch.equal(draws.bits("s", (11,))[:, :6], draws.bits("s", (6,)))


def test_golden_words():
    assert Draws(0, torch.tensor([0])).bits("", (4,))[0].tolist() == list(KNOWN[0][2])


def test_uniform_is_uniform_and_in_range():
    drawn = Draws(1, torch.arange(200)).uniform("u", (100,))
    assert drawn.dtype == torch.float32 and drawn.min() >= 0 and drawn.max() < 1
    assert stats.kstest(drawn.flatten().double().numpy(), "uniform").pvalue > 1e-3


def test_normal_is_standard_normal_and_finite():
    drawn = Draws(1, torch.arange(200)).normal("n", (100,))
    assert drawn.dtype == torch.float32 and torch.isfinite(drawn).all()
    assert stats.kstest(drawn.flatten().double().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("high", [1, 2, 10, 1000])
def test_integers_cover_their_range_evenly(high):
    drawn = Draws(2, torch.arange(200)).integers("i", (100,), high)
    assert drawn.min() >= 0 and drawn.max() < high
    counts = torch.bincount(drawn.flatten(), minlength=high)
    assert high == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_permutation_is_one_and_depends_on_its_step(n):
    order = permutation(3, "epoch", n)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(3, "epoch", n))
    assert n < 100 or not torch.equal(order, permutation(3, "epoch", n, step=1))


def test_shorts_are_the_samples_own_whatever_the_company():
    ids = torch.tensor([5, 6, 7, 2, -1, 2**40, 8])
    whole = Draws(3, ids).shorts("a", (2, 19))
    assert whole.shape == (7, 2, 19) and whole.dtype == torch.int32
    assert whole.min() >= 0 and whole.max() < 2**16
    assert all(torch.equal(whole[i : i + 1], Draws(3, ids[i : i + 1]).shorts("a", (2, 19))) for i in range(7))
    assert torch.equal(whole.flip(0), Draws(3, ids.flip(0)).shorts("a", (2, 19)))
    for other in (
        Draws(4, ids).shorts("a", (2, 19)),
        Draws(3, ids).shorts("b", (2, 19)),
        Draws(3, ids + 1).shorts("a", (2, 19)),
    ):
        assert (whole == other).float().mean() < 0.02
    assert Draws(3, ids[:0]).shorts("a", (4,)).shape == (0, 4)


def test_shorts_are_uniform_and_uncorrelated():
    words = Draws(0, torch.arange(200)).shorts("a", (512,)).double()
    counts = torch.histc(words, bins=64, min=0, max=2**16)
    expected = words.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # 63 degrees of freedom
    correlation = torch.corrcoef(words)
    assert (correlation - torch.eye(200)).abs().max() < 0.25


def test_shorts_have_golden_values():
    assert Draws(0, torch.arange(2)).shorts("x", (2, 2)).tolist() == [
        [[19740, 64073], [60492, 8673]],
        [[8350, 19415], [57576, 32246]],
    ]
    assert Draws(7, torch.tensor([3, -1])).shorts("a", (3,)).tolist() == [[22539, 43799, 3476], [42897, 26505, 54708]]
