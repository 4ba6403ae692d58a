"""Adapting a trained model to other classes: linear probe, full fine-tuning, or the one after the other.

Every way takes as many optimiser steps in all as training from scratch would, so that arms can be compared.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.defenses.training import Images, TrainReport, train
from robench.errors import ConfigError, ModelError, must, suggestion
from robench.models.weights import initialise, weights_sha256

MODES = ("linear_probe", "fine_tune", "lp_ft")
"""Only a new head on frozen features; everything at a tenth of the rate; half of the steps each, in this order."""
SLOWER = 0.1
"""Rate of fine-tuning over the rate of training from scratch."""


class Frozen(nn.Module):
    """A model of which only the head learns: its other parts stay in eval mode, so that batch statistics stay too."""

    def __init__(self, net: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.net = net
        self._head = [head]  # in a list, so that its weights are not listed twice
        net.requires_grad_(False)
        head.requires_grad_(True)

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        self.training = mode
        self._head[0].train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


def adapt(
    source: nn.Module,
    data: Images,
    *,
    mode: str,
    num_classes: int,
    steps: int,
    seed: int,
    lr: float = 3e-3,
    checkpoint: Path | None = None,
    **training: Any,
) -> tuple[nn.Module, TrainReport]:
    """A copy of ``source`` with a new head, adapted to ``data``, in eval mode; the source is left as it was.

    Args:
        source: Trained model whose last linear layer is its head.
        data: Target images and labels in 0..num_classes-1.
        mode: One of ``MODES``. The probe freezes all but the head, whose rate is that of training from scratch;
            fine-tuning takes a tenth of it.
        num_classes: Classes of the target.
        steps: Optimiser steps in all; ``lp_ft`` spends half of them on each part.
        seed: Seed of the new head and of the batches.
        lr: Highest rate of training from scratch.
        checkpoint: File for the state; ``lp_ft`` adds a second one beside it.
        **training: Passed on to ``train``.

    Raises:
        ConfigError: Unknown mode, or one step only for ``lp_ft``.
        ModelError: The source has no linear layer.

    Source: Kumar et al., ICLR 2022 (LP-FT), sections 3 and 4; Kornblith et al., CVPR 2019, section 3 (rates).
    """
    if mode not in MODES:
        raise ConfigError(must("a way of transfer", "one of " + ", ".join(MODES), mode, suggestion(mode, MODES)))
    if mode == "lp_ft" and steps < 2:
        raise ConfigError(must("the steps of lp_ft", "at least 2", steps, "it probes first and then fine-tunes"))
    net = copy.deepcopy(source)
    head = new_head(net, num_classes, seed=seed)
    common: dict[str, Any] = {**training, "seed": seed}
    probing = {"linear_probe": steps, "lp_ft": steps // 2}.get(mode, 0)
    if probing:
        report = train(Frozen(net, head), data, steps=probing, lr=lr, checkpoint=checkpoint, **common)
        net.requires_grad_(True)
    if probing < steps:
        after = checkpoint and checkpoint.with_name("fine-" + checkpoint.name)
        report = train(net, data, steps=steps - probing, lr=SLOWER * lr, checkpoint=after, **common)
        if after:
            after.unlink(missing_ok=True)
    return net.eval(), replace(report, steps=steps, weights_sha256=weights_sha256(net))


def new_head(net: nn.Module, num_classes: int, *, seed: int) -> nn.Linear:
    """Put a fresh layer in place of the last linear one and return it; its weights are drawn from ``seed``, its bias is 0.

    Raises:
        ModelError: There is no linear layer.
    """
    names = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise ModelError(must("a model to transfer from", "one with a linear layer", type(net).__name__, "use another"))
    parent, _, name = names[-1].rpartition(".")
    old = net.get_submodule(names[-1])
    with torch.random.fork_rng(devices=[]):
        head = nn.Linear(int(old.in_features), num_classes)  # type: ignore[arg-type]
    initialise(head, seed)
    setattr(net.get_submodule(parent), name, head.to(next(old.parameters()).device))
    return head
