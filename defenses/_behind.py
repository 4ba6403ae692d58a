"""A model behind a change of its images."""

from __future__ import annotations

from torch import Tensor, nn


class Behind(nn.Module):
    """A model that sees its images only after ``change``; both are used, not copied, and the model keeps its mode."""

    def __init__(self, change: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.change = change
        self.model = model
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.change(x))
        return logits
