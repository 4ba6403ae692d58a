"""All pictures by name, for the page and for the run directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from robench.reports.curves import corruption_curve, scarcity_curve, security_curve
from robench.reports.pareto import pareto_picture

PICTURES: Mapping[str, Callable[..., Figure | None]] = {
    "security_curve": security_curve,
    "corruption_curve": corruption_curve,
    "scarcity_curve": scarcity_curve,
    "pareto": pareto_picture,
}
"""File name → ``f(table, *, dataset=None) -> Figure | None``, in the order of the page; None: nothing to draw."""
