"""Scarce, imbalanced and wrongly labelled training sets, made from a whole one by seeded steps that compose.

The steps are taken in this order: classes, imbalance, fraction or shots, label noise. Each is nested: for one seed, a
smaller fraction, fewer shots and a longer tail are parts of the larger sample, and an image whose label is wrong at
one rate of noise has the same wrong label at every higher rate, in every fraction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robench.data.dataset import Dataset, fractions, stratified_order
from robench.errors import ConfigError, DataError, must, suggestion
from robench.ops.random import Draws, permutation

NOISES = ("symmetric", "asymmetric", "pair")
"""Kinds of label noise: to any other class alike, to a similar class, to the next class."""

_LIKE_DIGITS = {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"}
SIMILAR: Mapping[str, Mapping[str, str]] = {
    "digits": _LIKE_DIGITS,
    "mnist": _LIKE_DIGITS,
    "cifar10": {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"},
}
"""Data set → class → the class it is taken for. Source: Patrini et al., CVPR 2017, section 5 (MNIST and CIFAR-10)."""

HALVES = ("first_half", "second_half")


def sample(
    dataset: Dataset,
    *,
    fraction: float = 1.0,
    shots: int = 0,
    imbalance: float = 1.0,
    label_noise: float = 0.0,
    noise: str = "symmetric",
    classes: str = "",
    seed: int = 0,
) -> Dataset:
    """A part of a data set after every step that is asked for, in the order of this module.

    Args:
        dataset: The whole.
        fraction: Share in (0, 1], stratified by class.
        shots: Images per class; 0 leaves the number to ``fraction``.
        imbalance: Largest class over smallest, at least 1.
        label_noise: Probability in [0, 1) that a label is wrong.
        noise: One of ``NOISES``.
        classes: Classes to keep, as for ``of_classes``; empty keeps all.
        seed: Another seed draws other images and labels.

    Raises:
        ConfigError: A value out of range, or fraction and shots at once.
        DataError: A class would be left without an image, or has fewer than the shots.
    """
    if shots and fraction < 1:
        raise ConfigError(must("a sample", "a fraction or shots", f"{fraction} and {shots}", "leave one of them out"))
    part = of_classes(dataset, classes) if classes else dataset
    if imbalance != 1:
        part = imbalanced(part, imbalance, seed=seed)
    if shots:
        part = few_shot(part, shots, seed=seed)
    elif fraction != 1:
        part = fractions(part, [fraction], seed=seed)[0]
    return noisy(part, label_noise, noise=noise, seed=seed) if label_noise else part


def few_shot(dataset: Dataset, k: int, *, seed: int) -> Dataset:
    """``k`` images of every class, in the order of the source; for one seed, a smaller k gives a part of a larger one's.

    Raises:
        ConfigError: ``k`` is less than 1.
        DataError: A class has fewer than ``k`` images; it is named.
    """
    if k < 1:
        raise ConfigError(must("the shots", "at least 1", k, "e.g. 10 images per class"))
    counts = class_counts(dataset)
    short = [f"{name} ({count})" for name, count in counts.items() if count < k]
    if short:
        got = f"fewer in {', '.join(short)}"
        raise DataError(must(f"each class of {dataset.spec.name}", f"{k} images or more", got, "ask for fewer shots"))
    return _counted(dataset, dict.fromkeys(range(len(counts)), k), seed=seed, stage="shots")


def imbalanced(dataset: Dataset, ratio: float, *, seed: int) -> Dataset:
    """A long tail: from the first class to the last, sizes fall exponentially until the last is 1/ratio of the first.

    The first class gets as many images as the smallest class has, so that the ratio is what it says. For one seed, a
    larger ratio gives a part of a smaller one's sample.

    Args:
        dataset: The whole.
        ratio: Largest class over smallest, at least 1; sizes are rounded.
        seed: Another seed draws other images.

    Raises:
        ConfigError: The ratio is below 1, or there is one class only.
        DataError: The last class would be empty.

    Source: Cui et al., CVPR 2019, section 5.1 (long-tailed CIFAR).
    """
    counts = class_counts(dataset)
    if not ratio >= 1 or len(counts) < 2:
        raise ConfigError(must("an imbalance", "at least 1, over two classes or more", ratio, "e.g. 10: ten to one"))
    largest = min(counts.values())
    sizes = {i: round(largest * ratio ** (-i / (len(counts) - 1))) for i in range(len(counts))}
    empty = [dataset.spec.classes[i] for i, size in sizes.items() if not size]
    if empty:
        what = f"the imbalance {ratio:g} of {dataset.spec.name}"
        raise DataError(must(what, "at least one sample per class", f"none of {', '.join(empty)}", "use a smaller one"))
    return _counted(dataset, sizes, seed=seed, stage="imbalance")


def noisy(dataset: Dataset, rate: float, *, noise: str = "symmetric", seed: int) -> Dataset:
    """The same images, some with a wrong label; the right ones are kept in ``true_labels``.

    Each label is changed with probability ``rate``, drawn by the image's id, so the number that changed is not exact.
    A changed label is never the true one: symmetric noise draws among the other classes only. Asymmetric noise changes
    only classes that have a similar one (``SIMILAR``); ``pair`` takes every class for the next one, the last for the
    first.

    Raises:
        ConfigError: The rate is not in [0, 1), the kind is unknown, or there is one class only.
        DataError: Asymmetric noise for a data set or classes without similar ones.

    Source: Patrini et al., CVPR 2017, section 5; pair flip: Han et al., NeurIPS 2018, section 4.
    """
    if noise not in NOISES:
        raise ConfigError(must("the label noise", "one of " + ", ".join(NOISES), noise, suggestion(noise, NOISES)))
    if not 0 <= rate < 1 or len(dataset.spec.classes) < 2:
        raise ConfigError(must("a rate of label noise", "in [0, 1), over two classes or more", rate, "e.g. 0.2"))
    draws = Draws(seed, dataset.ids)
    wrong = draws.uniform("label_noise", (1,))[:, 0] < rate
    labels = torch.where(wrong, _taken_for(dataset, noise, draws), dataset.labels)
    return replace(dataset, labels=labels, true_labels=dataset.labels)


def _taken_for(dataset: Dataset, noise: str, draws: Draws) -> Tensor:
    """The class that each image is labelled with where its label is wrong, int64 (N,)."""
    count = len(dataset.spec.classes)
    if noise == "symmetric":
        return (dataset.labels + 1 + draws.integers("label_noise/class", (1,), count - 1)[:, 0]) % count
    if noise == "pair":
        return (dataset.labels + 1) % count
    return torch.tensor(_similar(dataset), dtype=torch.int64)[dataset.labels]


def _similar(dataset: Dataset) -> list[int]:
    names = dataset.spec.classes
    known = SIMILAR.get(dataset.spec.name, {})
    found = [names.index(known[n]) if known.get(n) in names else i for i, n in enumerate(names)]
    if found == list(range(len(names))):
        what = f"the classes of {dataset.spec.name}"
        raise DataError(must(what, "with similar ones known to robench", list(names), "use the noise 'pair' or 'symmetric'"))
    return found


def of_classes(dataset: Dataset, classes: str) -> Dataset:
    """The images of some classes, labelled anew from 0 in the order of the source.

    Args:
        dataset: The whole.
        classes: ``first_half``, ``second_half`` (the larger one where the number is odd), or names with commas between.

    Raises:
        ConfigError: An unknown class.
        DataError: No image is left.
    """
    kept = _chosen(dataset.spec.classes, classes)
    new = torch.full((len(dataset.spec.classes),), -1)
    new[kept] = torch.arange(len(kept))
    rows = (new[dataset.labels] >= 0).nonzero().flatten()
    if not len(rows):
        raise DataError(must(f"the classes {classes} of {dataset.spec.name}", "with images", 0, "name other classes"))
    part = dataset.take(rows)
    spec = replace(part.spec, classes=tuple(part.spec.classes[i] for i in kept))
    true = None if part.true_labels is None else new[part.true_labels]
    return replace(part, spec=spec, labels=new[part.labels], true_labels=true)


def _chosen(names: tuple[str, ...], classes: str) -> list[int]:
    middle = len(names) // 2
    if classes in HALVES:
        return list(range(middle) if classes == HALVES[0] else range(middle, len(names)))
    asked = [part.strip() for part in classes.split(",")]
    for name in asked:
        if name not in names:
            raise ConfigError(must("a class to keep", "a known one", name, suggestion(name, (*names, *HALVES))))
    return sorted({names.index(name) for name in asked})


def class_counts(dataset: Dataset) -> dict[str, int]:
    """Number of images of each class, by its name, in the order of the classes."""
    counts = torch.bincount(dataset.labels, minlength=len(dataset.spec.classes)).tolist()
    return dict(zip(dataset.spec.classes, counts, strict=True))


def held_out(dataset: Dataset, share: float, *, seed: int) -> tuple[Dataset, Dataset]:
    """A sample cut in two, (the rest, a stratified share), for whatever chooses by validation: it sees this sample only.

    Raises:
        ConfigError: The share is not in (0, 1).
        DataError: The sample is too small for an image on either side.
    """
    if not 0 < share < 1:
        raise ConfigError(must("the validation share", "in (0, 1)", share, "e.g. 0.2"))
    count = round(share * len(dataset))
    if not 0 < count < len(dataset):
        raise DataError(must("a sample to validate on", "two images or more", len(dataset), "use a larger fraction"))
    order = stratified_order(dataset.labels, seed, "validation")
    return dataset.take(order[count:].sort().values), dataset.take(order[:count].sort().values)


def _counted(dataset: Dataset, sizes: Mapping[int, int], *, seed: int, stage: str) -> Dataset:
    """The first images of each class in a seeded order of that class."""
    parts = []
    for label, size in sizes.items():
        rows = (dataset.labels == label).nonzero().flatten()
        parts.append(rows[permutation(seed, stage, len(rows), step=label + 1)[:size]])
    return dataset.take(torch.cat(parts).sort().values)
