"""Short tables of the page, one maker each: what a reader wants of one subject, from the tidy table."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from robench.metrics.pending import with_result
from robench.registry import Table


@dataclass(frozen=True)
class Section:
    """A heading, a table of texts and what to know about it."""

    title: str
    cells: pd.DataFrame
    """Texts as they are shown."""
    note: str = ""
    """How to read it, in a sentence or two."""


TABLE: dict[str, str] = {
    "corruptions": "robench.reports.corruptions:corruptions",
    "crossings": "robench.reports.crossings:crossings",
    "efficiency_of_data": "robench.reports.scarcity:efficiency_of_data",
    "compression": "robench.reports.compression:compression",
    "detection": "robench.reports.confidence:detection",
    "confidence": "robench.reports.confidence:confidence",
}
"""Name → maker, in the order of the page; one that finds nothing in the table gives None."""


def sections(table: pd.DataFrame) -> list[Section]:
    """What the makers find in a tidy table."""
    makers = Table("sections", TABLE)
    found = (makers[name].load()(with_result(table)) for name in makers)
    return [section for section in found if section is not None and len(section.cells)]
