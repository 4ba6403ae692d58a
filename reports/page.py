"""One self-contained HTML page: leaderboard, red flags, pictures, full table, versions."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from robench.registry import facts
from robench.reports.curves import corruption_curve, image, scarcity_curve, security_curve
from robench.reports.leaderboard import leaderboard, main_threats
from robench.reports.text import leaderboard_cells, reasons, tidy_cells

_DRAWN = (security_curve, corruption_curve, scarcity_curve)


@facts(version=1)
def page(table: pd.DataFrame, *, header: Mapping[str, Any] | None = None, title: str = "robench report") -> str:
    """The page as text; it loads nothing from elsewhere.

    Args:
        table: A tidy table.
        header: What to say about the run: versions, suite, seed, device; values may be mappings.
        title: Heading of the page.
    """
    board = leaderboard(table, threats=main_threats(header))
    environment = Environment(loader=PackageLoader("robench.reports"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        title=title,
        header=flat(header or {}),
        board=_rows(leaderboard_cells(board)),
        verdicts=[str(v) for v in board["validity"]],
        flags=reasons(table[table["attack"] != "curve"]),
        pictures=_pictures(table),
        rows=_rows(tidy_cells(table)),
        limited=bool((table["status"] == "limited").any()),
        unknown=max((int(n) for n in table.loc[table["attack"] == "worst", "n_unknown"].dropna()), default=0),
    )


def flat(header: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested header as ``outer.inner`` → text."""
    found: dict[str, str] = {}
    for key, value in header.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def _rows(cells: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(cells), "values": cells.to_numpy().tolist()}


def _pictures(table: pd.DataFrame) -> list[dict[str, str]]:
    found = []
    for dataset in sorted(set(table["dataset"])):
        for draw in _DRAWN:
            figure = draw(table, dataset=dataset)
            if figure is not None:
                title = figure.axes[0].get_title(loc="left")
                found.append({"title": title, "data": base64.b64encode(image(figure)).decode()})
    return found
