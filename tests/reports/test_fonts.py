"""Names in letters that matplotlib's own font does not have."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType

import matplotlib

from robench.metrics.table import tidy
from robench.reports.fonts import OWN, families, spelled
from robench.reports.pictures import pictures

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_letters_that_no_font_has_are_written_out() -> None:
    fonts, missing = families(["猫 é λ"], known=[])
    assert fonts == [OWN] and missing == {"猫"} and spelled("猫 é λ", missing) == "\\u732b é λ"


def test_a_font_that_has_them_is_taken_and_boxes_are_no_letters() -> None:
    script = "\U0001d4d0"  # a letter of STIX that DejaVu Sans lacks
    known = [("Last Resort", str(FONTS / "missing.ttf")), ("STIX", str(FONTS / "STIXGeneral.ttf"))]
    assert families([script], known=known) == ([OWN, "STIX"], frozenset())
    assert families([script], known=known[:1]) == ([OWN], frozenset({script}))


def test_pictures_of_any_name_are_drawn_without_a_warning(synthetic: ModuleType) -> None:
    table = tidy(synthetic.frames())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pictures(table.assign(model=table["model"] + " 猫🙂ก"))
