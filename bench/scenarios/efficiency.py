"""What a model costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robench.compress.notes import noted
from robench.compress.packing import packed_bits, packed_files
from robench.efficiency import Form, form_of, measure
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
    """What ships: told by the model itself, or the packed file of weights on a grid."""
    form = replace(form_of(objects.net), simulated=objects.model.simulated)
    files = packed_files(objects.net)
    return replace(form, files=files, bits=packed_bits(objects.net)) if files else form
