"""From where on a sign of trouble counts: for the verdict on a number, and for an attack that escalates by itself."""

from __future__ import annotations

from dataclasses import dataclass

VERSION = 1
"""Counts the changes of this module that move numbers: it is part of the version of every protocol that gets here."""


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
    disagreement: float = 0.2
    """Largest share of samples that only one of two losses breaks."""
    unconfirmed: float = 0.2
    """Largest share of samples that a search in lower precision may break and the model itself, at that point, does not."""
    unfinished: float = 0.1
    """Largest share of an ascent's survivors whose margin still falls in the last steps by ``late`` of all it fell."""
    late: float = 0.05
    """See ``unfinished``; the constant of Pintor et al. (I4)."""
    mass: float = 0.15
    """Largest median share of the gradient, as the norm counts it, that differences of pixel groups may contradict."""
    steep: float = 0.93
    """Smallest median slope along the claimed steepest direction, as measured over what the gradient claims."""
    line: float = 0.05
    """Largest median share of the margin's changes along an ascent's line that its gradients may miss."""
    turns: float = 1.2
    """Largest median of what the margin goes up and down along an ascent's line, over what it falls."""
    mass_of_one: float = 0.5
    """From where on the gradient of one sample counts as wrong at a place."""
    line_of_one: float = 0.2
    """From where on the gradients along the line of one sample count as wrong."""
    turns_of_one: float = 3.0
    """From where on the margin of one sample counts as a rippled one."""
    resting: float = 0.02
    """Largest share of samples whose gradients lead astray and that stayed robust: what the number may be too high by."""
    power: float = 0.2
    """Largest share of samples that a fault may have without being met: fewer samples vouch for nothing."""
    twins: float = 0.05
    """Largest share of samples on which a model without gradients and the twin that lends it one may differ in class."""
    few: int = 40
    """Samples that short ascents are taken to have met where they met fewer, so that chance is no evidence."""
    floor: int = 2
    """Samples that an advantage or a rise must comprise; one sample of a small set is no evidence."""
    unended: float = 0.01
    """Largest share of the samples that the last stage of a kind may break which a protocol extends as long as it wins."""


DEFAULTS = Thresholds()

UNBRIDGED = "no substitute gradients could be tried"
"""What a protocol's reason to escalate begins with where gradients mislead and no copy could be made to search on."""

ASTRAY = "where the search ended"
"""What a protocol's reason to escalate begins with where the gradients at its own last points are wrong: of a model whose
mask begins only there, or after so many passes, nothing else tells."""

UNENDED = "the search had not come to an end"
"""What a protocol's reason to escalate begins with where its last stage of a kind still broke more than ``unended``."""
