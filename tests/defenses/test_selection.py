"""Early stopping sees the validation part of the sample and nothing else, and a resumed one chooses the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robench.data import Dataset, fractions
from robench.data.dataset import from_arrays
from robench.data.sampling import held_out
from robench.defenses.selection import Selected, train_selected
from robench.defenses.training import accuracy, train
from robench.errors import ConfigError, DataError
from robench.models import fresh, weights_sha256
from robench.spec import DatasetSpec

G = torch.Generator().manual_seed(0)
Y = torch.arange(200) % 3
X = (0.5 * torch.rand(200, 1, 8, 8, generator=G) + 0.2 * Y[:, None, None, None]).clamp(0, 1)
WHOLE = from_arrays(DatasetSpec("toy", ("a", "b", "c"), (1, 8, 8), ("train",)), X, Y)
SETTINGS = {"validation": 0.25, "steps": 24, "seed": 1, "looks": 6, "batch_size": 8, "lr": 0.02}


def net(seed: int = 0) -> torch.nn.Module:
    return fresh("small_cnn(num_classes=3, width=2, size=8)", seed=seed)


def run(data: Dataset, **more: object) -> tuple[Selected, torch.nn.Module]:
    model = net()
    return train_selected(model, data, **{**SETTINGS, **more}), model


class Watched:
    """A reader that remembers which images were asked for, and spoils those that may not be seen."""

    def __init__(self, reader: object, allowed: Tensor) -> None:
        self.reader, self.allowed, self.seen = reader, set(allowed.tolist()), set()

    def __call__(self, rows: Tensor) -> Tensor:
        self.seen |= set(rows.tolist())
        return self.reader(rows) if set(rows.tolist()) <= self.allowed else torch.full((len(rows), 1, 8, 8), float("nan"))


def test_images_outside_the_fraction_are_never_read() -> None:
    part = fractions(WHOLE, [0.3], seed=2)[0]
    watched = Watched(WHOLE.reader, part.ids)
    poisoned = fractions(replace(WHOLE, reader=watched), [0.3], seed=2)[0]
    result, model = run(poisoned)
    assert watched.seen == set(part.ids.tolist())
    assert result.report.weights_sha256 == run(part)[0].report.weights_sha256 == weights_sha256(model)


def test_validation_labels_change_the_choice_and_not_the_training() -> None:
    trained, chosen = held_out(WHOLE, 0.25, seed=1)
    moments: set[str] = set()
    model = net()
    train(model, trained, steps=24, seed=1, batch_size=8, lr=0.02,
          progress=lambda d, n, loss: moments.add(weights_sha256(model)))  # fmt: skip
    # The labels of the validation images alone are turned round; the division goes by ids of the whole, kept as they are.
    order = torch.where(torch.isin(WHOLE.ids, chosen.ids), 2 - WHOLE.labels, WHOLE.labels)
    spoilt = replace(chosen, labels=order[torch.isin(WHOLE.ids, chosen.ids)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robench.defenses.selection.held_out", lambda *a, **k: (trained, spoilt))
        other, _ = run(WHOLE)
    assert other.report.weights_sha256 in moments and run(WHOLE)[0].report.weights_sha256 in moments
    assert other.report.n == len(trained) == 150 and other.validation_n == len(chosen) == 50
    assert not set(trained.ids.tolist()) & set(chosen.ids.tolist())


def test_the_best_look_is_chosen_by_a_slow_twin() -> None:
    trained, chosen = held_out(WHOLE, 0.25, seed=1)
    seen: dict[int, tuple[float, str]] = {}
    model = net()

    def look(done: int, total: int, loss: float) -> None:
        if done % 4 == 0:
            model.eval()
            seen[done] = accuracy(model, chosen), weights_sha256(model)
            model.train()

    train(model, trained, steps=24, seed=1, batch_size=8, lr=0.02, progress=look)
    best = max(seen, key=lambda s: (seen[s][0], -s))
    result, chosen_model = run(WHOLE)
    assert (result.step, result.validation_accuracy) == (best, seen[best][0])
    assert weights_sha256(chosen_model) == seen[best][1]
    assert result.report.train_accuracy == accuracy(chosen_model, trained)


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [3, 8, 12, 21])
def test_a_killed_selection_goes_on_to_the_same_choice(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(WHOLE)
    real = torch.optim.AdamW.step
    calls = 0

    def stopping(self: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Stop
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    kept = {"checkpoint": tmp_path / "c.pt", "every": 4}
    with pytest.raises(Stop):
        run(WHOLE, **kept)
    resumed, model = run(WHOLE, **kept)
    assert (resumed.step, resumed.report) == (whole.step, whole.report)
    assert weights_sha256(model) == whole.report.weights_sha256
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_bad_input_is_told() -> None:
    with pytest.raises(ConfigError, match="validation share"):
        run(WHOLE, validation=1.0)
    with pytest.raises(ConfigError, match=r"looks of a training must be in 1\.\.24"):
        run(WHOLE, looks=25)
    with pytest.raises(DataError, match="two images or more"):
        run(WHOLE.take(torch.tensor([0])))
