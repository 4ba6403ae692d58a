"""TorchScript graphs run from Python give the same outputs, and refuse what Python cannot run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robench.catalog import ARCHITECTURES
from robench.errors import ModelError
from robench.models.weights import construct
from robench.scripted import Unscripted
from robench.spec import Ref

X = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def net(text: str) -> nn.Module:
    return construct(ARCHITECTURES.resolve(Ref.parse(text))).eval()


@pytest.mark.parametrize("make", [
    lambda: torch.jit.trace(net("small_cnn"), X[:2]), lambda: torch.jit.script(net("small_cnn")),
    lambda: torch.jit.script(net("resnet18(width=8)")), lambda: torch.jit.freeze(torch.jit.trace(net("vit"), X[:2])),
], ids=["traced", "scripted", "scripted with a loop", "frozen"])  # fmt: skip
def test_outputs_and_gradients_are_those_of_the_script(make):
    module = make()
    found = []
    for model in (Unscripted(module), module):
        leaf = X.clone().requires_grad_()
        logits = model(leaf)
        found.append((logits.detach(), torch.autograd.grad(logits[:, 0].sum(), leaf)[0]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = x.flatten(1).sum(1, keepdim=True)
        if bool((total > 1e6).any()):
            total = total * 0
        for _ in range(3):
            total = total * 2
        return total


def test_branches_and_loops_are_followed():
    script = torch.jit.script(Branching().eval())
    for x in (X, X * 1e6):
        assert torch.equal(Unscripted(script)(x), script(x))


class Forked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(torch.relu, x))


def test_what_only_the_interpreter_runs_is_refused():
    with pytest.raises(ModelError, match="prim::fork"):
        Unscripted(torch.jit.script(Forked().eval()))
