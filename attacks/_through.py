"""A gradient attack on a model without a gradient: forward the model itself, backward its substitute."""

from __future__ import annotations

from torch import Tensor, nn

from robench import attacks
from robench.bpda import substitute
from robench.errors import ConfigError, must
from robench.ops.random import Draws
from robench.registry import Table, facts
from robench.spec import ThreatModel
from robench.victim import Victim, as_victim


@facts(version=1, norms=("linf", "l2", "l1"), access="white", randomness="per_sample")
def through(
    victim: Victim | nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, seeds: Draws, attack: str = "apgd(steps=40)"
) -> Tensor:
    """What another attack finds where layers that declare a substitute give its gradient, (N, ...) in [0, 1].

    Losses, margins and successes are those of the model itself; of an integer model only the gradient is its twin's
    (straight through). A model without a substitute is attacked as it is, and has a gradient or fails.

    Args:
        victim: The victim or a plain module.
        x: Clean images (N, ...), in [0, 1].
        y: Labels (N,).
        threat: A norm that the other attack knows.
        seeds: Per-sample randomness.
        attack: A gradient attack of the table with its arguments.

    Raises:
        ConfigError: No such attack, an argument that it does not take, or a norm that it does not know.
        NoGradientError: Neither the model nor a substitute has a gradient.

    Source: Athalye et al., ICML 2018, section 4.1 (BPDA); Bengio et al., arXiv 1308.3432 (straight-through estimator).
    """
    table = Table("attacks", attacks.TABLE, attacks.PREFIXES)
    ref = table.resolve(attack)
    norms = table[ref.name].facts.get("norms", ())
    if threat.norm not in norms:
        expected = "one of " + ", ".join(norms)
        raise ConfigError(must(f"the norm of {ref.name}", expected, threat.norm, "choose another attack"))
    victim = as_victim(victim, x, y, threat)
    held, victim.model = victim.model, substitute(victim.model)
    try:
        found: Tensor = table[ref.name].load()(victim, x, y, threat=threat, seeds=seeds, **ref.kwargs)
    finally:
        victim.model = held
    return found
