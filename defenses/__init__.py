"""Training recipes (batch losses) and inference-time defences. Importing this package imports no torch."""

from __future__ import annotations

TABLE_RECIPES: dict[str, str] = {
    "augmented": "robench.defenses._augmented:augmented",
    "pgd_at": "robench.defenses._adversarial:pgd_at",
    "standard": "robench.defenses._standard:standard",
    "trades": "robench.defenses._adversarial:trades",
}
"""Name of a recipe -> ``module:function``, a batch loss ``f(model, x, y, *, draws, step, ...)``."""

TABLE: dict[str, str] = {
    "bit_depth": "robench.defenses._bit_depth:bit_depth",
    "jpeg": "robench.defenses._jpeg:jpeg",
}
"""Name of an inference-time defence -> ``module:function``, ``f(model, *, ...)``, which returns the defended model."""
