"""All report files of a run, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from robench.files import write_atomically
from robench.metrics.pareto import pareto
from robench.metrics.table import tidy
from robench.metrics.transfer import matrix
from robench.registry import facts
from robench.reports.compression import compression
from robench.reports.curves import image
from robench.reports.leaderboard import leaderboard, main_threats
from robench.reports.page import page
from robench.reports.pictures import pictures
from robench.reports.text import render
from robench.reports.transfers import transfer_matrix
from robench.tables import to_parquet


@facts(version=1)
def write_reports(
    source: pd.DataFrame | Mapping[str, pd.DataFrame],
    out: Path,
    header: Mapping[str, Any] | None = None,
    *,
    limited: bool = False,
) -> list[Path]:
    """Write table, leaderboard, transfer matrix, page and pictures; returns the paths.

    Args:
        source: A tidy table, or per-sample frames by scenario.
        out: Folder, made if missing.
        header: Versions and settings for the page.
        limited: The run was limited to a part of the samples (for frames; a tidy table says so itself).
    """
    table = source if isinstance(source, pd.DataFrame) else tidy(source, limited=limited)
    drawn = pictures(table)
    files = table_files(table, header)
    files["report.html"] = page(table, header=header, drawn=drawn).encode()
    for picture in reversed(drawn):  # of several data sets the first one's have files
        files |= {f"{picture.name}.png": picture.png, f"{picture.name}.svg": image(picture.figure, "svg")}
    for name, data in sorted(files.items()):
        write_atomically(out / name, data)
    return [out / name for name in sorted(files)]


@facts(version=1)
def table_files(table: pd.DataFrame, header: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """File name → content of every table that is written; they follow from the rows alone.

    Args:
        table: The tidy table.
        header: The run's ``run.json``, for the threats that rank.
    """
    board = leaderboard(table, threats=main_threats(header))
    files = {
        "table.csv": render(table, format="csv").encode(),
        "table.md": render(table, format="md").encode(),
        "table.parquet": to_parquet(table),
        "leaderboard.csv": render(board, format="csv").encode(),
        "leaderboard.md": render(board, format="md").encode(),
    }
    moved = matrix(table)
    if len(moved):
        files["transfer.csv"] = render(moved, format="csv").encode()
        files["transfer.md"] = render(transfer_matrix(table), format="md").encode()
    costs = pareto(table)
    if len(costs):
        files["pareto.csv"] = render(costs, format="csv").encode()
    packed = compression(table)
    if packed is not None:
        files["compression.csv"] = render(packed.cells, format="csv").encode()
        files["compression.md"] = render(packed.cells, format="md").encode()
    return files
