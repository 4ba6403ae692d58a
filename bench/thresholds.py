"""From where on a sign of trouble counts: for the verdict on a number, and for an attack that escalates by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """From where on a sign of trouble makes a number suspicious."""

    zero_gradient: float = 0.05
    """Largest share of samples (sentinel) or of gradient passes (attacks) without any gradient."""
    unstable: float = 0.005
    """Largest share of rows on which two differently composed batches disagree."""
    advantage: float = 0.01
    """Largest share of samples by which an attack that sees less may beat the gradient attacks."""
    rise: float = 0.01
    """Largest rise of robust accuracy from a smaller to a larger eps."""
    misleading: float = 0.1
    """Largest share of samples whose gradient may disagree with finite differences."""
    agreement: float = 0.85
    """Smallest cosine, over samples, between slopes along random directions as measured and as the gradient has them."""
    lent: float = 0.7
    """The same where the gradient is a substitute's: a model that computes in integers moves in steps, which it smooths."""
    hidden: float = 0.045
    """Largest mean share of the squared gradient on pixels where it is said to be zero."""
    uneven: float = 0.1
    """Largest share of samples on which the gradients of two classes may differ by more than a factor of 1 / ``even``."""
    even: float = 0.01
    """See ``uneven``; honest nets stay above 0.1, saturated outputs are below 0.001."""
    probabilities: float = 0.5
    """Largest share of samples on which outputs may look like probabilities, as rounded ones do by chance."""
    remainder: float = 0.02
    """Largest share of samples that gradient-free stages may break after the gradient stages, all of them searched."""
    missed: float = 0.05
    """Largest share of samples that a short ascent of the sentinel may break and the attacks judged did not."""
    disagreement: float = 0.1
    """Largest share of samples that only one of two losses breaks."""
    unconfirmed: float = 0.2
    """Largest share of samples that a search in lower precision may break and the model itself, at that point, does not."""
    unfinished: float = 0.1
    """Largest share of an ascent's survivors whose margin still falls in the last steps by ``late`` of all it fell."""
    late: float = 0.05
    """See ``unfinished``; the constant of Pintor et al. (I4)."""
    twins: float = 0.05
    """Largest share of samples on which a model without gradients and the twin that lends it one may differ in class."""
    few: int = 40
    """Samples that short ascents are taken to have met where they met fewer, so that chance is no evidence."""
    floor: int = 2
    """Samples that an advantage or a rise must comprise; one sample of a small set is no evidence."""
    unended: float = 0.01
    """Largest share of the samples that the last stage of a kind may break which a protocol extends as long as it wins."""


DEFAULTS = Thresholds()

UNENDED = "the search had not come to an end"
"""What a protocol's reason to escalate begins with where its last stage of a kind still broke more than ``unended``."""
