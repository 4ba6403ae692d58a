"""Detectors that read the logits alone."""

from __future__ import annotations

from robench.ood.outputs import Known, Scorer
from robench.registry import facts


@facts(version=1, needs="logits")
def msp(known: Known) -> Scorer:
    """The largest softmax probability.

    Source: Hendrycks & Gimpel, ICLR 2017, section 3.
    """
    return lambda seen: seen.logits.double().softmax(1).amax(1)


@facts(version=1, needs="logits")
def max_logit(known: Known) -> Scorer:
    """The largest logit.

    Source: Hendrycks et al., ICML 2022, section 4 (MaxLogit).
    """
    return lambda seen: seen.logits.double().amax(1)


@facts(version=1, needs="logits")
def energy(known: Known, *, temperature: float = 1.0) -> Scorer:
    """The negative free energy, T log sum exp(logits / T).

    Source: Liu et al., NeurIPS 2020, section 3.1.
    """
    return lambda seen: temperature * (seen.logits.double() / temperature).logsumexp(1)
