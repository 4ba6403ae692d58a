"""Corruption errors and flip rates in closed form, against slow twins, and where they must say nothing."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from robench.metrics import corrupted, flips
from robench.metrics.corrupted import ALEXNET, ALEXNET_CLEAN
from robench.metrics.table import tidy

NAMES = tuple(ALEXNET)
FRAMES = {"model": "m", "dataset": "d", "condition": "", "scenario": "corruption", "seed": 0, "cell": "c0"}


def frame(errors: np.ndarray, *, names: tuple[str, ...] = NAMES, clean: float = 1.0, **more) -> pd.DataFrame:
    """Rows from errors (images, corruptions, severities)."""
    _, count, severities = errors.shape
    index = np.indices(errors.shape).reshape(3, -1)
    values = {
        "sample": index[0], "corruption": np.array(names)[index[1]], "severity": index[2] + 1, "score": 1 - errors.ravel(),
        "score_clean": clean, "classes": 1000, "table": "imagenet-v1", "source": "robench-C (regenerated, imagenet-v1)",
        "family": np.where(np.char.find(np.array(names)[index[1]], "noise") >= 0, "noise", "other"), "reference": "",
    }  # fmt: skip
    assert count == len(names) and severities <= 5
    return pd.DataFrame({**FRAMES, **values, **more})


def random_errors(n: int, seed: int = 0, rate: float = 0.4) -> np.ndarray:
    return (np.random.default_rng(seed).uniform(size=(n, 15, 5)) < rate).astype(float)


def test_alexnet_itself_has_an_mce_of_one() -> None:
    errors = np.broadcast_to(np.array(list(ALEXNET.values()))[None, :, None], (4, 15, 5))
    e = corrupted.mce_alexnet(frame(errors))
    assert (e.value, e.low, e.high, e.n) == (pytest.approx(1), pytest.approx(1), pytest.approx(1), 4)
    e = corrupted.relative_mce_alexnet(frame(errors, clean=1 - ALEXNET_CLEAN))
    assert e.value == pytest.approx(1)


def test_mce_equals_the_published_loop() -> None:
    errors = random_errors(50)
    per_corruption = [100 * errors[:, i].mean(0).sum() / (5 * ALEXNET[name]) for i, name in enumerate(NAMES)]
    assert 100 * corrupted.mce_alexnet(frame(errors)).value == pytest.approx(np.mean(per_corruption))
    rises = [(errors[:, i].mean(0) - 0.25).sum() / (5 * (ALEXNET[name] - ALEXNET_CLEAN)) for i, name in enumerate(NAMES)]
    assert corrupted.relative_mce_alexnet(frame(errors, clean=0.75)).value == pytest.approx(np.mean(rises))
    assert corrupted.mean_corruption_error(frame(errors)).value == pytest.approx(errors.mean())
    assert corrupted.corruption_drop(frame(errors, clean=0.75)).value == pytest.approx(errors.mean() - 0.25)


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda f: f[f["corruption"] != "fog"],
        lambda f: f[(f["corruption"] != "fog") | (f["severity"] != 3)],
        lambda f: f.assign(classes=10),
        lambda f: f.assign(table="cifar-v1"),
        lambda f: f.drop(columns=["classes"]),
    ],
)
def test_mce_says_nothing_beside_other_data(spoilt) -> None:
    rows = spoilt(frame(random_errors(6)))
    assert corrupted.mce_alexnet(rows).n == corrupted.relative_mce_alexnet(rows).n == 0
    assert not {"mce_alexnet", "relative_mce_alexnet"} & {
        line["metric"] for line in corrupted.lines(rows, {"corruption": rows})
    }


def test_published_folders_have_an_mce() -> None:
    assert corrupted.mce_alexnet(frame(random_errors(6)).assign(table="published(ImageNet-C)")).n == 6


def test_a_missing_corruption_leaves_no_benchmark_mean() -> None:
    rows = frame(random_errors(6))
    assert corrupted.mean_corruption_error(rows).n == 6
    assert corrupted.mean_corruption_error(rows[rows["corruption"] != "snow"]).n == 0


def test_interval_of_mce_is_that_of_a_slow_bootstrap() -> None:
    errors = random_errors(80, seed=3)
    e = corrupted.mce_alexnet(frame(errors))
    per_image = (errors.mean(2) / np.array(list(ALEXNET.values()))).mean(1)
    rng = np.random.default_rng(1)
    means = [per_image[rng.integers(0, 80, 80)].mean() for _ in range(4000)]
    assert (e.low, e.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_ratio_to_a_reference_and_its_interval() -> None:
    own, other = random_errors(60, 1, 0.3), random_errors(60, 2, 0.6)
    rows = frame(own).assign(reference_score=frame(other)["score"], reference_score_clean=0.9, score_clean=0.95)
    e = corrupted.mce_reference(rows)
    ratio = lambda i: (own[i].mean((0, 2)) / other[i].mean((0, 2))).mean()  # noqa: E731
    assert e.value == pytest.approx(ratio(np.arange(60)))
    rng = np.random.default_rng(1)
    found = [ratio(rng.integers(0, 60, 60)) for _ in range(3000)]
    assert (e.low, e.high) == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.02)
    rises = ((own.mean((0, 2)) - 0.05) / (other.mean((0, 2)) - 0.1)).mean()
    assert corrupted.relative_mce_reference(rows).value == pytest.approx(rises)


def test_a_model_is_its_own_reference_with_one_exactly() -> None:
    rows = frame(random_errors(20))
    found = {line["metric"]: line for line in corrupted.lines(rows, {"corruption": rows})}
    assert found["mce_reference"]["value"] == found["mce_reference"]["ci_low"] == found["mce_reference"]["ci_high"] == 1
    assert found["mce_reference"]["attack"] == "robench-C (regenerated, imagenet-v1) over m"


def test_a_reference_without_errors_gives_nothing() -> None:
    rows = frame(random_errors(6)).assign(reference_score=1.0, reference_score_clean=1.0)
    assert corrupted.mce_reference(rows).n == corrupted.relative_mce_reference(rows).n == 0


def test_a_reference_on_other_images_or_sources_is_none() -> None:
    rows, other = frame(random_errors(6), reference="ref"), frame(random_errors(6), model="ref")
    metrics = lambda reference: {m["metric"] for m in corrupted.lines(rows, {"corruption": pd.concat([rows, reference])})}  # noqa: E731
    assert "mce_reference" in metrics(other)
    assert "mce_reference" not in metrics(other[other["sample"] < 5])
    assert "mce_reference" not in metrics(other.assign(source="published(X)", table="published(X)"))
    assert "mce_reference" not in metrics(other.assign(condition="prune(amount=0.5)"))


def test_one_image_has_no_interval() -> None:
    rows = frame(random_errors(1)).assign(reference_score=0.0, reference_score_clean=0.5)
    for metric in (corrupted.mce_alexnet, corrupted.mce_reference, corrupted.corruption_drop):
        e = metric(rows)
        assert e.n == 1 and math.isnan(e.low) and math.isfinite(e.value)


def test_families_and_severities_have_lines_of_their_own() -> None:
    errors = random_errors(10)
    table = tidy({"corruption": frame(errors)})
    families = table[table["metric"] == "family_corrupted_accuracy"]
    assert len(families) == 2 * 6
    noise = families[(families["threat"] == "noise") & families["eps"].isna()]["value"].item()
    assert noise == pytest.approx(1 - errors[:, :3].mean())
    second = families[(families["threat"] == "other") & (families["eps"] == 2)]["value"].item()
    assert second == pytest.approx(1 - errors[:, 3:, 1].mean())
    assert set(table["attack"].str.partition(" over ")[0]) == {"robench-C (regenerated, imagenet-v1)"}


def test_a_failed_corruption_counts_as_wrong_and_only_the_interval_knows_that_it_could_be_right() -> None:
    rows = frame(random_errors(30)).assign(model="m", dataset="d", condition="", seed=0, cell="c", reference="")
    lost = rows["corruption"] == NAMES[0]
    failed = rows.assign(failed=lost, score=rows["score"].mask(lost, 0.0))
    best = rows.assign(score=rows["score"].mask(lost, 1.0))
    for told in ({"threat": "mean"}, {"threat": NAMES[0], "eps": 1.0}):
        found, right = (
            next(line for line in corrupted.lines(part, {"corruption": part})
                 if line["metric"] == "corrupted_accuracy" and all(line.get(k) == v for k, v in told.items()))
            for part in (failed, best)
        )  # fmt: skip
        assert found["value"] < right["value"] and found["ci_high"] == right["ci_high"]
    assert found["value"] == 0 and found["ci_high"] == 1


def test_flip_rate_equals_the_published_loop() -> None:
    rng = np.random.default_rng(0)
    predictions = rng.integers(0, 3, (20, 31))
    for compared in ("first", "previous"):
        wanted = 0.0
        for video in predictions:
            previous, changes = video[0], []
            for prediction in video[1:]:
                changes.append(previous != prediction)
                previous = prediction if compared == "previous" else previous
            wanted += np.mean(changes) / 20
        before = predictions[:, :1] if compared == "first" else predictions[:, :-1]
        shares = (predictions[:, 1:] != before).mean(1)
        rows = pd.DataFrame({**FRAMES, "sample": range(20), "perturbation": "tilt", "flips": shares})
        assert flips.flip_rate(rows).value == pytest.approx(wanted)
        assert flips.flip_rate(rows).n == 20


def test_flips_have_a_line_each_and_a_mean() -> None:
    parts = [
        pd.DataFrame(
            {**FRAMES, "scenario": "flips", "sample": range(4), "perturbation": name, "compared": compared, "flips": rate,
             "source": "robench-P (regenerated)"}
        )
        for name, compared, rate in (("shot_noise", "first", 0.2), ("tilt", "previous", 0.1))
    ]  # fmt: skip
    table = tidy({"flips": pd.concat(parts)}).set_index("threat")
    assert table["value"].to_dict() == pytest.approx({"mean": 0.15, "shot_noise": 0.2, "tilt": 0.1})
    assert table.loc["tilt", "attack"] == "robench-P (regenerated), beside previous frame"
