"""Out-of-distribution detection: detectors on cached outputs, and images of other kinds. Imports no torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "msp": "robench.ood._outputs:msp",
    "max_logit": "robench.ood._outputs:max_logit",
    "energy": "robench.ood._outputs:energy",
    "odin": "robench.ood._odin:odin",
    "mahalanobis": "robench.ood._mahalanobis:mahalanobis",
    "knn": "robench.ood._knn:knn",
    "react": "robench.ood._head:react",
    "vim": "robench.ood._head:vim",
}
"""Detectors ``f(known, *, ...) -> Scorer``: fitted on what is known of the model, higher is more like its own data.

The fact ``needs`` names what a detector works on: ``logits``, ``features``, ``head`` (the last linear layer) or
``gradient`` (its own pass through the model).
"""

TABLE_SOURCES: dict[str, str] = {
    "glyphs": "robench.ood._glyphs:glyphs",
    "textures": "robench.ood._textures:textures",
    "noise": "robench.ood._textures:noise",
    "inverted": "robench.ood._textures:inverted",
    "scrambled": "robench.ood._textures:scrambled",
}
"""Other images ``f(x, *, draws, ...) -> images`` of the shape of x, the data set's own: (N, C, H, W) in [0, 1]."""
