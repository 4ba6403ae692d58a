"""The surrogate → target matrix for the eye."""

from __future__ import annotations

import pandas as pd

from robench.metrics.transfer import matrix
from robench.registry import facts
from robench.reports.cells import interval


@facts(version=1)
def transfer_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """One line per data set, threat and surrogate, one column per target, as texts: ``31.0 [21.6, 42.2] of 71``.

    Percent of the target's clean-correct samples that the surrogate's images broke, with a 95 % interval and their
    number. A changed copy (compressed, defended) of the surrogate itself stands under ``its CONDITION``.

    Args:
        table: A tidy table.

    Returns:
        Columns ``dataset`` (where there are several), ``threat``, ``surrogate`` and the targets, plain ones first;
        without lines when nothing was transferred.
    """
    long = matrix(table)
    if long.empty:
        return pd.DataFrame()
    rows = long.assign(
        column=[_column(r) for r in long.to_dict("records")], text=[_text(r) for r in long.to_dict("records")]
    )
    order = rows.assign(changed=rows["condition"] != "").sort_values(["changed", "target", "condition"], kind="stable")
    wide = rows.pivot_table(index=["dataset", "threat", "surrogate"], columns="column", values="text", aggfunc="first")
    wide = wide[list(dict.fromkeys(order["column"]))].fillna("").rename_axis(columns=None).reset_index()
    return wide.drop(columns="dataset") if wide["dataset"].nunique() == 1 else wide


def _column(row: dict[str, object]) -> str:
    if row["condition"] and row["target"] == str(row["surrogate"]).partition(" (")[0]:
        return f"its {row['condition']}"
    return f"{row['target']} {row['condition']}".strip()


def _text(row: dict[str, object]) -> str:
    return f"{interval(row['value'], row['ci_low'], row['ci_high'])} of {row['n']}"
