"""What a model costs."""

from __future__ import annotations

from typing import Any

from robench.efficiency import measure
from robench.inference import untouched
from robench.registry import facts
from robench.scenarios.objects import Objects


@facts(version=1)
def efficiency(objects: Objects) -> list[dict[str, Any]]:
    """One row: parameters, MACs, stored bytes, latency and peak memory."""
    with untouched(objects.net):
        return [
            measure(objects.net, objects.data.spec.shape, device=objects.context.device, simulated=objects.model.simulated)
        ]
