"""Explainers: functions that say which pixels speak for a class. Listing them imports no torch."""

from __future__ import annotations

TABLE: dict[str, str] = {
    "saliency": "robench.explainers._gradient:saliency",
    "integrated_gradients": "robench.explainers._gradient:integrated_gradients",
    "occlusion": "robench.explainers._occlusion:occlusion",
    "random_map": "robench.explainers._control:random_map",
}
