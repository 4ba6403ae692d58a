"""The value, its rows, and stratified parts against plain twins."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.data import Dataset, fractions, subset
from robench.data.dataset import ArrayReader, from_arrays, stratified_order
from robench.errors import ConfigError, DataError
from robench.spec import DatasetSpec


def make(labels: list[int], classes: int | None = None) -> Dataset:
    """A data set whose image i is filled with the byte i."""
    names = tuple(f"class{i}" for i in range(classes or max(labels) + 1))
    array = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    spec = DatasetSpec("toy", names, (0, 0, 0), ("test",))
    return from_arrays(spec, array, torch.tensor(labels), ids=torch.arange(len(labels)) + 100)


def rows_of(data: Dataset) -> list[int]:
    return (data.ids - 100).tolist()


def test_bytes_become_the_nearest_float32_of_k_over_255() -> None:
    array = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = ArrayReader(array)(torch.tensor([0]))
    expected = (np.arange(256, dtype=np.float64) / 255).astype(np.float32).reshape(1, 1, 16, 16)
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), expected)
    assert float(x.max()) == 1.0


def test_images_and_take_agree_also_when_nested() -> None:
    data = make([0, 1, 0, 1, 0, 1])
    part = data.take(torch.tensor([5, 1, 3, 3])).take(torch.tensor([2, 0]))
    assert rows_of(part) == [3, 5]
    assert part.labels.tolist() == [1, 1]
    assert torch.equal(part.images(), data.images(torch.tensor([3, 5])))
    assert torch.equal(part.images(torch.tensor([1]))[0, 0], torch.full((2, 2), 5 / 255))
    assert len(part) == 2
    assert part.spec == data.spec


def test_batches_cover_everything_in_order() -> None:
    data = make([0, 1, 0, 1, 0])
    parts = list(data.batches(2))
    assert [len(x) for x, _, _ in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([x for x, _, _ in parts]), data.images())
    assert torch.equal(torch.cat([y for _, y, _ in parts]), data.labels)
    assert torch.equal(torch.cat([i for _, _, i in parts]), data.ids)


def test_an_empty_part_has_no_batches() -> None:
    assert list(make([0, 1]).take(torch.tensor([], dtype=torch.int64)).batches(4)) == []


@pytest.mark.parametrize("rows", [torch.tensor([-1]), torch.tensor([2]), torch.tensor([True, False]), torch.tensor(0)])
def test_rows_outside_are_refused(rows: torch.Tensor) -> None:
    data = make([0, 1])
    with pytest.raises(DataError, match="rows must be"):
        data.images(rows)
    with pytest.raises(DataError, match="rows must be"):
        data.take(rows)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="batch size must be at least 1"):
        next(make([0, 1]).batches(0))


def test_ids_and_labels_are_checked() -> None:
    data = make([0, 1])
    with pytest.raises(DataError, match="ids must be"):
        Dataset(data.spec, torch.arange(3), data.labels, data.reader)
    with pytest.raises(DataError, match=r"labels must be in 0\.\.1"):
        Dataset(data.spec, data.ids, torch.tensor([0, 2]), data.reader)
    with pytest.raises(DataError, match="as many"):
        from_arrays(data.spec, torch.zeros(3, 1, 2, 2, dtype=torch.uint8), data.labels)


def test_it_travels_between_processes() -> None:
    data = make([0, 1, 0, 1]).take(torch.tensor([3, 0]))
    twin = pickle.loads(pickle.dumps(data))
    assert torch.equal(twin.images(), data.images())


def test_hash_changes_with_pixels_labels_and_shape() -> None:
    spec = DatasetSpec("toy", ("a", "b"), (0, 0, 0), ("test",))
    zeros = torch.zeros(2, 1, 2, 3, dtype=torch.uint8)
    one = zeros.clone()
    one[1, 0, 1, 2] = 1
    y = torch.tensor([0, 1])
    made = [(zeros, y), (one, y), (zeros, y.flip(0)), (zeros.reshape(2, 1, 3, 2), y), (zeros, y)]
    hashes = [from_arrays(spec, x, labels).spec.sha256 for x, labels in made]
    assert len(set(hashes)) == 4
    assert hashes[0] == hashes[-1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.integers(0, 5))
def test_every_prefix_of_the_order_is_stratified(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    order = stratified_order(y, seed, "test")
    assert sorted(order.tolist()) == list(range(len(y)))
    present = len(set(labels))
    for n in range(1, len(y) + 1):
        for label in set(labels):
            share = n * labels.count(label) / len(labels)
            # Rounding alone gives 1/2; samples of other classes at an equal place can push it one further.
            assert abs(int((y[order[:n]] == label).sum()) - share) <= 1 + 0.5 * present / 2


def test_equal_classes_are_dealt_round_by_round() -> None:
    y = torch.arange(40) % 4
    dealt = y[stratified_order(y, 3, "test")].reshape(10, 4)
    assert all(sorted(row) == [0, 1, 2, 3] for row in dealt.tolist())


def test_subset_is_exact_seeded_sorted_and_nested() -> None:
    data = make([0] * 60 + [1] * 30 + [2] * 10)
    half = subset(data, 50, seed=7)
    assert half.labels.bincount().tolist() == [30, 15, 5]
    assert rows_of(half) == sorted(rows_of(half))
    assert rows_of(half) == rows_of(subset(data, 50, seed=7))
    assert rows_of(half) != rows_of(subset(data, 50, seed=8))
    assert set(rows_of(subset(data, 20, seed=7))) < set(rows_of(half))
    assert rows_of(subset(data, 100, seed=7)) == list(range(100))


@pytest.mark.parametrize("n", [0, 5, -1])
def test_subset_size_must_fit(n: int) -> None:
    with pytest.raises(ConfigError, match=r"subset must be in 1\.\.4"):
        subset(make([0, 1, 0, 1]), n, seed=0)


def test_every_sample_is_chosen_about_equally_often() -> None:
    data = make([0] * 20 + [1] * 20)
    counts = np.zeros(40)
    for seed in range(300):
        counts[rows_of(subset(data, 10, seed=seed))] += 1
    # Binomial(300, 1/4): mean 75, deviation 7.5; five deviations over 40 samples.
    assert np.abs(counts - 75).max() < 37.5


def test_fractions_are_nested_stratified_and_in_the_order_asked() -> None:
    data = make([0] * 100 + [1] * 50 + [2] * 50)
    quarter, tenth, whole = fractions(data, (0.25, 0.1, 1.0), seed=1)
    counts = [part.labels.bincount().tolist() for part in (quarter, tenth, whole)]
    assert counts[0] in ([25, 13, 12], [25, 12, 13])
    assert counts[1:] == [[10, 5, 5], [100, 50, 50]]
    assert set(rows_of(tenth)) < set(rows_of(quarter)) < set(rows_of(whole))
    assert rows_of(fractions(data, [0.1], seed=1)[0]) == rows_of(tenth)
    assert rows_of(fractions(data, [0.1], seed=2)[0]) != rows_of(tenth)


def test_fraction_without_a_class_names_it() -> None:
    with pytest.raises(DataError, match=r"at least one sample per class, got 'none of class1'") as caught:
        fractions(make([0] * 99 + [1]), [0.1], seed=0)
    assert "the fraction 0.1 of toy (10 of 100 samples)" in str(caught.value)


def test_class_without_samples_is_named_too() -> None:
    with pytest.raises(DataError, match="none of class2"):
        fractions(make([0, 1], classes=3), [1.0], seed=0)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_must_be_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match=r"a fraction must be in \(0, 1\]"):
        fractions(make([0, 1]), [value], seed=0)
