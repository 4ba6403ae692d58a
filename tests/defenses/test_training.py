"""The training loop: seeded, resumable bit by bit, with equal steps whatever the number of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robench.defenses.training import batch_rows, learning_rate, train
from robench.errors import ConfigError, DataError, ModelError, StoreError
from robench.models import fresh, weights_sha256

G = torch.Generator().manual_seed(0)
Y = torch.randint(0, 3, (50,), generator=G)
X = (torch.rand(50, 1, 8, 8, generator=G) * 0.4 + 0.3 * Y[:, None, None, None]).clamp(0, 1)
SETTINGS = {"steps": 24, "seed": 1, "batch_size": 16}


class Killed(Exception):
    """Stands for the end of the process."""


@dataclass
class Source:
    """What a data set of robench offers."""

    ids: Tensor
    labels: Tensor

    def images(self, rows: Tensor) -> Tensor:
        return X[rows]


def net(seed: int = 0) -> nn.Module:
    return fresh("small_cnn(num_classes=3, width=2, size=8)", seed=seed)


def normed() -> nn.Module:
    return fresh("resnet18(num_classes=3, width=1)", seed=0)


def killed_at(step: int):
    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise Killed

    return progress


def test_it_learns_and_reports() -> None:
    model = net()
    seen: list[tuple[int, int]] = []
    report = train(model, X, Y, steps=120, seed=0, batch_size=16, lr=0.01, progress=lambda d, t, loss: seen.append((d, t)))
    assert report.train_accuracy > 0.9 and not model.training
    assert report.train_accuracy == (model(X).argmax(1) == Y).float().mean().item()
    assert (report.steps, report.seed, report.n) == (120, 0, 50) and report.weights_sha256 == weights_sha256(model)
    assert seen == [(i + 1, 120) for i in range(120)]


@pytest.mark.parametrize("recipe", ["standard", "augmented", "pgd_at(steps=2)", "trades(steps=2)"])
@pytest.mark.parametrize("make", [net, normed])
def test_a_killed_training_goes_on_bit_by_bit(tmp_path: Path, recipe: str, make) -> None:
    settings = {**SETTINGS, "steps": 9, "recipe": recipe}
    whole = train(make(), X, Y, **settings)
    for kill in (2, 4, 8):
        path = tmp_path / f"{kill}.pt"
        with pytest.raises(Killed):
            train(make(), X, Y, **settings, checkpoint=path, every=3, progress=killed_at(kill))
        assert train(make(), X, Y, **settings, checkpoint=path, every=3) == whole


def test_resuming_repeats_no_step_before_the_checkpoint(tmp_path: Path) -> None:
    path, steps = tmp_path / "c.pt", []
    with pytest.raises(Killed):
        train(net(), X, Y, **SETTINGS, checkpoint=path, every=5, progress=killed_at(13))
    train(net(), X, Y, **SETTINGS, checkpoint=path, every=5, progress=lambda d, t, loss: steps.append(d))
    assert steps == list(range(11, 25))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt"]


def test_training_does_not_depend_on_the_global_generator_and_leaves_it_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = train(net(), X, Y, **SETTINGS, recipe="augmented")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert train(net(), X, Y, **SETTINGS, recipe="augmented") == first
    assert train(net(), X, Y, **{**SETTINGS, "seed": 2}, recipe="augmented").weights_sha256 != first.weights_sha256


def test_a_data_set_trains_as_its_tensors_do() -> None:
    ids = torch.arange(50) * 7
    assert train(net(), Source(ids, Y), **SETTINGS, recipe="augmented") == train(
        net(), X, Y, ids=ids, **SETTINGS, recipe="augmented"
    )


@pytest.mark.parametrize("n", [3, 16, 50])
def test_every_epoch_uses_an_image_at_most_once(n: int) -> None:
    size = min(n, 16)
    per_epoch = n // size
    for epoch in range(3):
        rows = torch.cat([batch_rows(n, 16, seed=4, step=epoch * per_epoch + i) for i in range(per_epoch)])
        assert len(rows) == per_epoch * size == len(rows.unique()) and int(rows.max()) < n
    assert batch_rows(n, 16, seed=4, step=0).tolist() != batch_rows(n, 16, seed=4, step=per_epoch).tolist()


def test_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(s, 100, 0.5) for s in range(100)]
    assert rates[19] == max(rates) == 0.5 and rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates[9] == pytest.approx(0.25) and rates[59] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(0, 1, 0.5) == 0.5


def test_a_small_set_takes_as_many_steps() -> None:
    reports = [train(net(), X[:n], Y[:n], **SETTINGS) for n in (5, 50)]
    assert [(r.steps, r.n) for r in reports] == [(24, 5), (24, 50)]
    assert reports[0].weights_sha256 != reports[1].weights_sha256


@pytest.mark.parametrize(
    "other",
    [{"steps": 25}, {"seed": 2}, {"lr": 0.1}, {"recipe": "augmented"}, {"batch_size": 8}, {"ids": torch.arange(50) + 1}],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, other: dict) -> None:
    train(net(), X, Y, **SETTINGS, checkpoint=tmp_path / "c.pt")
    with pytest.raises(ModelError, match="of this training"):
        train(net(), X, Y, **{**SETTINGS, **other}, checkpoint=tmp_path / "c.pt")
    with pytest.raises(ModelError, match="of this training"):
        train(net(seed=1), X, Y, **SETTINGS, checkpoint=tmp_path / "c.pt")


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    train(net(), X, Y, **SETTINGS, checkpoint=path)
    for content in (path.read_bytes()[:500], b"", b"junk"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="remove it"):
            train(net(), X, Y, **SETTINGS, checkpoint=path)


def test_an_unwritable_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="writable"):
        train(net(), X, Y, **SETTINGS, checkpoint=tmp_path / "file" / "c.pt")


def test_what_cannot_be_trained_on_is_told() -> None:
    with pytest.raises(DataError, match="equally many"):
        train(net(), X, Y[:4], **SETTINGS)
    with pytest.raises(DataError, match="at least one"):
        train(net(), X[:0], Y[:0], **SETTINGS)
    with pytest.raises(ModelError, match="loss must be finite"):
        train(net(), X * float("nan"), Y, **SETTINGS)
    with pytest.raises(ConfigError, match="did you mean 'pgd_at'"):
        train(net(), X, Y, **SETTINGS, recipe="pgdat")
