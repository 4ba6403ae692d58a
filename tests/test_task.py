"""A toy segmentation task goes through victim, attack and judge: the judge knows nothing but scores."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

from robench.attacks import pgd
from robench.data.dataset import Dataset
from robench.errors import ConfigError
from robench.judge import judge
from robench.metrics.table import tidy
from robench.ops.random import Draws
from robench.runner import run_cell
from robench.spec import Artifact, Cell, Context, DatasetSpec, Ref, ThreatModel
from robench.task import CLASSIFICATION, Task
from robench.victim import Victim
from robench.workshop import Model


def pixel_loss(outputs, masks):
    return functional.cross_entropy(outputs, masks, reduction="none").flatten(1).mean(1)


def accuracy(outputs, masks):
    return (outputs.argmax(1) == masks).float().flatten(1).mean(1)


SEGMENTATION = Task(
    name="segmentation",
    losses={"ce": pixel_loss},
    margin=lambda outputs, masks: accuracy(outputs, masks) - 0.499,
    score=accuracy,
    predict=lambda outputs: outputs.argmax(1).flatten(1).sum(1),
    threshold=0.5,
)


class Brightness(nn.Module):
    def forward(self, x):
        return torch.cat([0.5 - x, x - 0.5], 1)


@pytest.mark.parametrize(("eps", "broken"), [("0.05", False), ("0.2", True)])
def test_segmentation_passes_through(eps, broken):
    masks = (torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).long()
    x = torch.where(masks == 1, 0.6, 0.4)[:, None]
    threat = ThreatModel.parse(f"linf({eps})")
    victim = Victim(Brightness(), x, masks, threat=threat, task=SEGMENTATION)
    x_adv = pgd(victim, x, masks, threat=threat, seeds=Draws(0, torch.arange(6)), steps=5)
    verdicts = judge(Brightness(), x, masks, x_adv=x_adv, threat=threat, task=SEGMENTATION)
    assert verdicts.broken(SEGMENTATION).tolist() == [broken] * 6
    assert ((verdicts.score >= 0) & (verdicts.score <= 1)).all()


MASKS = (torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).long()
BY_NUMBER = replace(
    SEGMENTATION,
    losses={"ce": lambda outputs, y: pixel_loss(outputs, MASKS[y])},
    margin=lambda outputs, y: SEGMENTATION.margin(outputs, MASKS[y]),
    score=lambda outputs, y: accuracy(outputs, MASKS[y]),
)
"""The same task on a data set whose label is the number of a mask."""


def test_segmentation_passes_through_a_cell_and_the_table(monkeypatch):
    x = torch.where(MASKS == 1, 0.6, 0.4)[:, None]
    spec = DatasetSpec("toy", tuple("abcdef"), (1, 4, 4), ("test",))
    things = {
        "model": Model(Brightness(), {}, task=BY_NUMBER),
        "data": Dataset(spec, torch.arange(6), torch.arange(6), x.__getitem__),
    }
    monkeypatch.setattr("robench.scenarios.objects.load", lambda artifact, context: things[artifact.kind])
    monkeypatch.setattr("robench.scenarios.objects.fresh_model", lambda artifact, context: things["model"])
    parts = (Artifact("model", Ref("toy"), label="toy"), Artifact("data", Ref("toy"), label="toy"))
    rows = []
    for eps in ("0.05", "0.2"):
        cell = Cell(Ref.of("evasion", attack="pgd(steps=5)", threat=f"linf({eps})"), "1", *parts)
        lead = {"model": "toy", "dataset": "toy", "scenario": "evasion", "condition": "", "seed": 0, "cell": cell.digest}
        rows.append(run_cell(cell, Context("")).assign(**lead))
    table = tidy({"evasion": pd.concat(rows)}).query("attack == 'worst' and metric == 'robust_accuracy'")
    assert table["value"].iloc[0] == 1 and 0 <= table["value"].iloc[1] < 0.5


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match=r"a loss of classification must be a known one, got 'cee'; did you mean 'ce'\?"):
        CLASSIFICATION.loss("cee")
