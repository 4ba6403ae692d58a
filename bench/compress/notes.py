"""What a compression could not do, told by the compressed model."""

from __future__ import annotations

from torch import nn


def note(model: nn.Module, text: str) -> None:
    """Leave a remark on a compressed model about what the compression could not do."""
    model.__dict__["compression_notes"] = (*noted(model), text)


def noted(model: nn.Module) -> tuple[str, ...]:
    """What compressions remarked on a model; empty for others."""
    return tuple(model.__dict__.get("compression_notes", ()))
