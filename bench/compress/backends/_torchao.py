"""torchao: 8-bit weights of linear layers, as its kernels compute on them."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from robench.compress.backends._require import quietly, require
from robench.errors import ModelError, must
from robench.registry import facts

EXTRA = "compress"
FILE = "model.pt"


@facts(version=1, simulated=False, gradient=True, requires="torchao")
def torchao_int8_weight_only(model: nn.Module) -> nn.Module:
    """A deep copy whose nn.Linear layers hold 8-bit weights (torchao); convolutions stay as they are.

    Weights symmetric, one scale per output channel, made floats again in every product: bytes fall, activations stay
    float, and the gradient is that of the dequantised weights. Worth it for transformers; of a convolutional net only
    the classifier is touched.

    Args:
        model: Left as it is.

    Raises:
        NotInstalledError: torchao is not there.
        ModelError: The model has no nn.Linear layer.
    """
    with quietly():
        library = require("torchao.quantization", extra=EXTRA)
    own = copy.deepcopy(model).eval()
    if not any(type(module) is nn.Linear for module in own.modules()):
        raise ModelError(must("a model for torchao", "one with nn.Linear layers", type(model).__name__, "use onnx_int8"))
    with quietly():
        library.quantize_(own, library.Int8WeightOnlyConfig(version=2))
    return TorchaoModel(own)


class TorchaoModel(nn.Module):
    """A model with torchao's tensors: they answer few of torch's questions, so the modules that hold them stay hidden.

    Args:
        net: The quantised model, in eval mode.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._hidden = [net.requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._hidden[0](x)
        return logits

    @property
    def files(self) -> dict[str, bytes]:
        """Name → bytes of what would be shipped: the state dictionary as torch saves it."""
        buffer = io.BytesIO()
        torch.save(self._hidden[0].state_dict(), buffer)
        return {FILE: buffer.getvalue()}

    def tensors(self) -> Iterator[Any]:
        """What is stored as weights: of a quantised one its integers, without their scales."""
        for value in self._hidden[0].state_dict().values():
            yield getattr(value, "qdata", value)

    def twin(self) -> nn.Module:
        """A copy with the same weights as floats, in which operations can be counted."""
        shown = copy.deepcopy(self._hidden[0])
        for module in shown.modules():
            weight = getattr(module, "weight", None)
            if type(module) is nn.Linear and hasattr(weight, "qdata"):
                module.weight = nn.Parameter(weight.dequantize(), requires_grad=False)  # type: ignore[operator,union-attr]
        return shown
