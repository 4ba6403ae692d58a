"""The surrogate → target matrix as it is read: lines are surrogates, columns targets."""

from __future__ import annotations

import pandas as pd
import pytest

from robench.metrics.table import tidy
from robench.reports.page import page
from robench.reports.transfers import transfer_matrix
from robench.reports.write import write_reports


@pytest.fixture(scope="module")
def frames(synthetic) -> dict[str, pd.DataFrame]:
    """Two models of 60 images, 57 of them right, attacked from each other; and a changed copy of one."""
    pairs = [("plain", "trained"), ("trained", "plain"), ("plain", "plain")]
    parts = [synthetic.evasion(t, attacks=("fgsm",)).assign(attack=f"transfer(source={s!r})") for s, t in pairs]
    changed = synthetic.evasion("plain", attacks=("noise",)).assign(condition="int8", attack="transfer(source='plain')")
    return {"evasion": pd.concat([*parts, changed], ignore_index=True)}


def test_lines_are_surrogates_and_columns_targets_plain_ones_first(frames):
    found = transfer_matrix(tidy(frames))
    assert list(found) == ["threat", "surrogate", "plain", "trained", "its int8"]
    assert len(found) == 3 * 2
    last = found[found["threat"] == "linf(8/255)"].set_index("surrogate")
    assert last.loc["trained", "trained"] == "" and last.loc["trained", "its int8"] == ""
    broken = frames["evasion"].query("model == 'trained' and threat == 'linf(8/255)' and score_clean > 0")["score_adv"].eq(0)
    assert last.loc["plain", "trained"].startswith(f"{100 * broken.mean():.1f} [")
    assert last.loc["plain", "trained"].endswith("] of 57") and len(broken) == 57


def test_data_sets_have_lines_of_their_own(frames):
    both = pd.concat([frames["evasion"], frames["evasion"].assign(dataset="other")], ignore_index=True)
    found = transfer_matrix(tidy({"evasion": both}))
    assert list(found)[:3] == ["dataset", "threat", "surrogate"] and len(found) == 12


@pytest.mark.slow
def test_the_page_and_the_folder_hold_it_only_where_something_was_transferred(frames, synthetic, tmp_path):
    text = page(tidy(frames))
    assert "<h2>Transfer between models</h2>" in text and "<th>its int8</th>" in text
    written = {p.name: p for p in write_reports(frames, tmp_path / "a")}
    assert len(pd.read_csv(written["transfer.csv"])) == 12
    assert written["transfer.md"].read_text().startswith("| threat")
    assert "Transfer between models" not in page(synthetic.table())
    assert not {"transfer.csv", "transfer.md"} & {p.name for p in write_reports(synthetic.frames(), tmp_path / "b")}
