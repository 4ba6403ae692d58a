"""Zoo nets with the weights that come in the package."""

from __future__ import annotations

from torch import nn

from robench.errors import ConfigError, ModelError, must, suggestion
from robench.models.load import read_weights
from robench.models.weights import fresh, weights_sha256
from robench.zoo.entries import WEIGHTS, ZOO, ZooEntry


def entry(name: str) -> ZooEntry:
    """The entry of a zoo name.

    Raises:
        ConfigError: The zoo has no such net.
    """
    if name not in ZOO:
        raise ConfigError(must("a zoo model", "a known name", name, suggestion(name, ZOO)))
    return ZOO[name]


def load(name: str) -> nn.Module:
    """The zoo net ``name`` on the CPU, in eval mode; takes pixels in [0, 1], returns logits (N, 10).

    Raises:
        ConfigError: The zoo has no such net.
        ModelError: Its weights are missing, damaged, or not the recorded ones.
    """
    found = entry(name)
    model = fresh(found.arch, seed=found.seed)
    read_weights(model, WEIGHTS / f"{name}.safetensors")
    got = weights_sha256(model)
    if got != found.sha256:
        remedy = f"install robench again, or rebuild with `robench zoo build {name}`"
        raise ModelError(must(f"the weights of {name}", f"those with sha256 {found.sha256}", got, remedy))
    return model.eval()
