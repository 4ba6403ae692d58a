"""A toy segmentation task goes through victim, attack and judge: the judge knows nothing but scores."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from robench.attacks import pgd
from robench.errors import ConfigError
from robench.judge import judge
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.task import CLASSIFICATION, Task
from robench.victim import Victim


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


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match=r"a loss of classification must be a known one, got 'cee'; did you mean 'ce'\?"):
        CLASSIFICATION.loss("cee")
