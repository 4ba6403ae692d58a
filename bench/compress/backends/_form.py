"""What a deployed model tells of itself to whoever measures what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class Form:
    """The form that ships, where the module itself does not show it."""

    files: Mapping[str, int] | None = None
    """Name and bytes of every file that ships."""
    counted: nn.Module | None = None
    """Network whose parameters and operations are counted in place of the model's, which hides them."""
    bits: Mapping[str, int] = field(default_factory=dict)
    """Bits of a stored weight by parameter name; by default those of its type."""
    simulated: bool = False
    """Whether the module only imitates the deployed one; never here."""
