"""The page on architecture names every column that a scenario's rows have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import robench
from robench import evaluation
from robench.data._digits import digits
from robench.zoo import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
LEAD = {"model", "dataset", "scenario", "condition", "seed", "cell"}


def told(scenario: str) -> set[str]:
    """Names between backticks in a scenario's line of the table, without what stands in parentheses."""
    line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{scenario}` |"))
    names = re.sub(r"\([^()]*\)", "", line.split("|", 2)[2].replace("else missing", ""))
    return set(re.findall(r"\b[a-z][a-z0-9_]+\b", names))


@pytest.fixture(scope="module")
def frames():
    kept = {}
    data = digits(split="test")
    with pytest.MonkeyPatch.context() as patch:
        found = evaluation.verdict
        keep = lambda rows, watch: kept.update(evasion=rows, sentinel=watch) or found(rows, watch)  # noqa: E731
        patch.setattr(evaluation, "verdict", keep)
        robench.evaluate(load("digits-mlp"), data.images()[:2], data.labels[:2], threat="linf(0.1)", attacks=["fgsm"])
    return kept


@pytest.mark.parametrize("scenario", ["evasion", "sentinel"])
def test_columns_are_those_of_the_page(frames, scenario):
    columns = {str(name) for name in frames[scenario].columns}
    assert columns - LEAD - told(scenario) == set()
    assert told(scenario) - columns - {"on", "samples", "failed", "ok"} == set()
