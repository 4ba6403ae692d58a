"""What a model costs."""

from __future__ import annotations

from typing import Any

from robench.compress.notes import noted
from robench.compress.packing import packed_bits, packed_files
from robench.efficiency import Form, measure
from robench.inference import untouched
from robench.registry import facts
from robench.scenarios.objects import Objects


@facts(version=2)
def efficiency(objects: Objects, *, batch: int | None = None) -> list[dict[str, Any]]:
    """One row: parameters, MACs, bytes, latency, throughput and memory of the form that ships."""
    with untouched(objects.net):
        shape, device = objects.data.spec.shape, objects.context.device
        row = measure(objects.net, shape, device=device, batch=batch, form=_form(objects))
    notes = [row["note"], *noted(objects.net)]
    return [{**row, "note": "; ".join(n for n in notes if n)}]


def _form(objects: Objects) -> Form:
    """What ships of weights on a grid is the packed file; of other models what they tell themselves."""
    files, bits = packed_files(objects.net), packed_bits(objects.net)
    return Form(files or None, bits, simulated=objects.model.simulated)
