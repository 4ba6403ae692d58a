"""Scarce, imbalanced and wrongly labelled samples: nested, seeded, and refused where a class would be empty."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.data import Dataset
from robench.data.dataset import from_arrays
from robench.data.sampling import SIMILAR, few_shot, held_out, imbalanced, noisy, of_classes, sample
from robench.errors import ConfigError, DataError
from robench.spec import DatasetSpec


def make(counts: list[int], name: str = "toy", classes: tuple[str, ...] = ()) -> Dataset:
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    array = torch.arange(len(labels), dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2) / len(labels)
    spec = DatasetSpec(name, classes or tuple(f"class{i}" for i in range(len(counts))), (0, 0, 0), ("train",))
    return from_arrays(spec, array.contiguous(), labels, ids=torch.arange(len(labels)) * 3 + 50)


def ids(data: Dataset) -> set[int]:
    return set(data.ids.tolist())


def test_k_shots_are_k_of_each_class_nested_and_seeded() -> None:
    data = make([30, 12, 20])
    four, ten = few_shot(data, 4, seed=1), few_shot(data, 10, seed=1)
    assert four.labels.bincount().tolist() == [4, 4, 4] and ten.labels.bincount().tolist() == [10, 10, 10]
    assert ids(four) < ids(ten)
    assert ids(four) == ids(few_shot(data, 4, seed=1)) != ids(few_shot(data, 4, seed=2))
    assert four.ids.tolist() == sorted(four.ids.tolist())
    assert ids(few_shot(data, 12, seed=0)) >= {int(i) for i in data.ids[data.labels == 1]}


def test_more_shots_than_a_class_has_are_refused_by_its_name() -> None:
    with pytest.raises(DataError, match=r"13 images or more, got 'fewer in class1 \(12\)'; ask for fewer shots"):
        few_shot(make([30, 12, 20]), 13, seed=0)
    with pytest.raises(ConfigError, match="at least 1"):
        few_shot(make([30, 12]), 0, seed=0)


def test_a_long_tail_falls_exponentially_and_is_nested() -> None:
    data = make([100] * 5)
    tail, longer = imbalanced(data, 16, seed=0), imbalanced(data, 81, seed=0)
    assert tail.labels.bincount().tolist() == [100, 50, 25, 12, 6]  # 100 / 2^i, the last two rounded half to even
    assert longer.labels.bincount().tolist() == [100, 33, 11, 4, 1]
    assert ids(longer) < ids(tail) < ids(data)
    assert ids(imbalanced(data, 1, seed=0)) == ids(data)
    assert ids(imbalanced(data, 16, seed=1)) != ids(tail)


def test_the_tail_starts_at_the_smallest_class_so_that_the_ratio_is_kept() -> None:
    assert imbalanced(make([500, 40, 60]), 4, seed=0).labels.bincount().tolist() == [40, 20, 10]


@pytest.mark.parametrize("ratio", [0.5, 0.0, float("nan")])
def test_a_ratio_below_one_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="an imbalance must be at least 1"):
        imbalanced(make([5, 5]), ratio, seed=0)


def test_a_tail_that_leaves_a_class_empty_is_refused() -> None:
    with pytest.raises(DataError, match=r"the imbalance 100 of toy must be at least one sample per class.*none of class2"):
        imbalanced(make([20, 20, 20]), 100, seed=0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 9), st.sampled_from(["symmetric", "pair"]))
def test_noise_never_redraws_the_true_class_and_is_nested_in_its_rate(seed: int, noise: str) -> None:
    data = make([40, 40, 40])
    low, high = noisy(data, 0.2, noise=noise, seed=seed), noisy(data, 0.6, noise=noise, seed=seed)
    wrong = [(part.labels != data.labels) for part in (low, high)]
    assert torch.equal(low.true_labels, data.labels) and bool((wrong[1] >= wrong[0]).all())
    assert torch.equal(low.labels[wrong[0]], high.labels[wrong[0]])
    assert torch.equal(low.ids, data.ids) and torch.equal(low.images(), data.images())
    # Binomial(120, p): five deviations.
    for part, rate in zip(wrong, (0.2, 0.6), strict=True):
        assert abs(int(part.sum()) - 120 * rate) < 5 * (120 * rate * (1 - rate)) ** 0.5


def test_symmetric_noise_reaches_every_other_class_alike() -> None:
    data = make([3000, 3000, 3000, 3000])
    part = noisy(data, 0.5, seed=3)
    counts = torch.zeros(4, 4)
    for true, told in zip(data.labels.tolist(), part.labels.tolist(), strict=True):
        counts[true, told] += 1
    assert (counts.diagonal() / 3000 - 0.5).abs().max() < 0.05
    assert (counts[~torch.eye(4, dtype=torch.bool)] / 3000 - 1 / 6).abs().max() < 0.03


def test_an_image_has_the_same_label_in_every_fraction() -> None:
    data = make([50, 50])
    small, large = (sample(data, fraction=f, label_noise=0.4, seed=2) for f in (0.2, 0.8))
    told = dict(zip(large.ids.tolist(), large.labels.tolist(), strict=True))
    assert len(small) == 20 and len(large) == 80
    assert all(told[i] == y for i, y in zip(small.ids.tolist(), small.labels.tolist(), strict=True))


def test_asymmetric_noise_follows_the_published_map_only() -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    data = make([60] * 10, "cifar10", names)
    part = noisy(data, 0.5, noise="asymmetric", seed=0)
    moves = {(names[a], names[b]) for a, b in zip(data.labels.tolist(), part.labels.tolist(), strict=True) if a != b}
    assert moves == {("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"), ("dog", "cat")}
    assert moves == set(SIMILAR["cifar10"].items())


def test_pair_noise_goes_to_the_next_class() -> None:
    data = make([30, 30, 30])
    part = noisy(data, 0.9, noise="pair", seed=0)
    wrong = part.labels != data.labels
    assert torch.equal(part.labels[wrong], (data.labels[wrong] + 1) % 3)


def test_noise_that_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match=r"similar ones known to robench.*use the noise 'pair'"):
        noisy(make([5, 5]), 0.1, noise="asymmetric", seed=0)
    with pytest.raises(ConfigError, match="did you mean 'symmetric'"):
        noisy(make([5, 5]), 0.1, noise="symetric", seed=0)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"in \[0, 1\)"):
            noisy(make([5, 5]), rate, seed=0)


def test_halves_of_the_classes_share_no_image_and_count_from_zero() -> None:
    data = make([10, 20, 30, 40, 50])
    first, second = of_classes(data, "first_half"), of_classes(data, "second_half")
    assert not ids(first) & ids(second) and ids(first) | ids(second) == ids(data)
    assert first.labels.bincount().tolist() == [10, 20] and second.labels.bincount().tolist() == [30, 40, 50]
    assert second.spec.classes == ("class2", "class3", "class4")
    assert torch.equal(second.images(), data.images((data.labels >= 2).nonzero().flatten()))


def test_classes_are_named_and_unknown_ones_refused() -> None:
    data = make([10, 20, 30])
    part = of_classes(data, "class2, class0")
    assert part.spec.classes == ("class0", "class2") and part.labels.bincount().tolist() == [10, 30]
    with pytest.raises(ConfigError, match="did you mean 'class1'"):
        of_classes(data, "clas1")


def test_true_labels_follow_when_images_are_taken() -> None:
    part = noisy(make([20, 20]), 0.5, seed=0)
    rows = torch.tensor([7, 3])
    assert torch.equal(part.take(rows).true_labels, part.true_labels[rows])


def test_steps_compose_in_one_order() -> None:
    data = make([40] * 4)
    by_hand = noisy(few_shot(imbalanced(of_classes(data, "second_half"), 2, seed=5), 9, seed=5), 0.3, noise="pair", seed=5)
    at_once = sample(data, shots=9, imbalance=2, label_noise=0.3, noise="pair", classes="second_half", seed=5)
    assert torch.equal(by_hand.ids, at_once.ids) and torch.equal(by_hand.labels, at_once.labels)
    assert sample(data) is data
    with pytest.raises(ConfigError, match="a fraction or shots"):
        sample(data, fraction=0.5, shots=3)
    with pytest.raises(DataError, match="at least one sample per class"):
        sample(data, fraction=0.05, imbalance=30)


def test_the_held_out_share_is_stratified_and_disjoint() -> None:
    data = make([50, 100])
    rest, chosen = held_out(data, 0.2, seed=0)
    assert chosen.labels.bincount().tolist() == [10, 20] and not ids(rest) & ids(chosen)
    assert ids(rest) | ids(chosen) == ids(data)
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="validation share"):
            held_out(data, share, seed=0)
    with pytest.raises(DataError, match="two images or more"):
        held_out(data.take(torch.tensor([0])), 0.5, seed=0)
