"""All report files of a run, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from robench.errors import ConfigError, must
from robench.files import write_atomically
from robench.metrics.pareto import pareto
from robench.metrics.table import tidy
from robench.metrics.transfer import matrix
from robench.progress import Progress, silent
from robench.registry import facts
from robench.reports.compression import compression
from robench.reports.curves import image
from robench.reports.leaderboard import leaderboard, main_threats
from robench.reports.page import page
from robench.reports.pictures import PICTURES, pictures
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
    progress: Progress = silent,
) -> list[Path]:
    """Write table, leaderboard, transfer matrix, page and pictures; returns the paths.

    Args:
        source: A tidy table, or per-sample frames by scenario.
        out: Folder, made if missing.
        header: Versions and settings for the page.
        limited: The run was limited to a part of the samples (for frames; a tidy table says so itself).
        progress: Called with what is being done, how many are done and how many there are.
    """
    progress("writing tables", 0, 1)
    table = source if isinstance(source, pd.DataFrame) else tidy(source, limited=limited)
    files = table_files(table, header)
    drawn = pictures(table, progress=progress)
    progress("writing the page", 0, 1)
    files["report.html"] = page(table, header=header, drawn=drawn).encode()
    for picture in reversed(drawn):  # of several data sets the first one's have files
        files |= {f"{picture.name}.png": picture.png, f"{picture.name}.svg": image(picture.figure, "svg")}
    for name, data in sorted(files.items()):
        write_atomically(out / name, data)
    return [out / name for name in sorted(files)]


TABLES = ("table", "leaderboard", "transfer", "pareto", "compression")
"""Names of the tables that may be written, each with one or several of the endings csv, md and parquet."""


def require_free(out: Path) -> None:
    """Refuse a folder that is no run directory and has files of the names that reports are written under.

    Raises:
        ConfigError: Names such files.
    """
    if (out / "run.json").exists() or not out.is_dir():
        return
    own = {f"{name}.{end}" for name in TABLES for end in ("csv", "md", "parquet")}
    own |= {"report.html", *(f"{name}.{end}" for name in PICTURES for end in ("png", "svg"))}
    there = sorted(own & {entry.name for entry in out.iterdir()})
    if there:
        expected = f"a run directory, or a folder without {', '.join(there[:3])}{', ...' if len(there) > 3 else ''}"
        raise ConfigError(must("--out", expected, str(out), "choose another --out: a run's report would overwrite these"))


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
