"""A third party's attack: it does nothing."""

from robench.registry import facts


@facts(version=7)
def toy(victim, x, y, *, threat, seeds, strength=0.5):
    """Return the images as they are."""
    return x
