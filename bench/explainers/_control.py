"""The control that knows nothing about the model."""

from __future__ import annotations

from torch import Tensor, nn

from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import facts


@facts(version=1, randomness="per_sample", gradient=False, control=True)
def random_map(model: nn.Module, x: Tensor, target: Tensor, *, draws: Draws | None, stage: str = "random_map") -> Tensor:
    """Standard normal noise, float32 (N, H, W): an explanation that is worth nothing.

    It depends on the sample alone, so its sensitivity to the image is 0: read that number beside faithfulness only.

    Args:
        model: Not used.
        x: Images (N, C, H, W); only their shape counts.
        target: Not used.
        draws: Counter-based draws for the N samples.
        stage: Name of the stream of draws.

    Raises:
        ConfigError: draws is None.
    """
    if draws is None:
        raise ConfigError(must("draws of random_map", "robench.ops.random.Draws", None, "pass Draws(seed, ids)"))
    return draws.normal(stage, x.shape[-2:]).to(x.device)
