"""Compressions: model in, smaller or coarser model out. Listing them imports no torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "float": "robench.compress._identity:identity",
    "prune": "robench.compress._prune:prune",
    "int8": "robench.compress._int8:int8",
}
