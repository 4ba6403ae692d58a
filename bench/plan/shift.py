"""Shifted test sets, rotations and translations, groups of samples, and attacks on training images."""

from __future__ import annotations

import hashlib
from pathlib import Path

from robench import catalog
from robench.data.subsets import positions, read_groups, read_reference
from robench.errors import DataError, must
from robench.plan.attacks import attacked, require_norms
from robench.plan.draft import Draft
from robench.plan.ood import read_as
from robench.plan.plain import measured
from robench.spec import Artifact, Cell, Ref
from robench.suite import Shift


def section(draft: Draft) -> None:
    """Every model that was asked about clean test images is asked about shifted ones; the rest for models as they are."""
    suite = draft.suite
    asked = [c for c in draft.cells.values() if _is_clean_test(draft, c)]
    for name, shift in suite.shifts.items():
        images = shifted_images(draft, name, shift)
        line = _line(shift.reference)
        baseline = draft.model(shift.baseline).label if shift.baseline else ""
        for cell in asked:
            _shifted(draft, cell, Ref.of("shift", name=name, line=line, baseline=baseline), images)
    for model in measured(draft):
        if suite.spatial.angles:
            grid = {"angles": suite.spatial.angles, "shifts": suite.spatial.shifts, "padding": suite.spatial.padding}
            draft.add(Ref.of("spatial", **grid), model)
        if suite.groups:
            extra = (draft.predictions(model, draft.test()), grouped(suite.groups, draft.sources.ids))
            draft.add(Ref.of("groups"), model, extra=extra)
    _robust_gap(draft)


def _line(reference: str) -> tuple[float, float, int] | None:
    """The line through reference models in a file, if one is named."""
    if not reference:
        return None
    from robench.metrics.shifts import reference_line

    return reference_line(read_reference(reference))


def _is_clean_test(draft: Draft, cell: Cell) -> bool:
    clean = cell.scenario.name == "clean" and cell.scenario.kwargs["split"] == "test"
    return clean and cell.data.digest == draft.test().digest


def _shifted(draft: Draft, cell: Cell, scenario: Ref, images: Artifact) -> None:
    extra = (draft.predictions(cell.model, images), draft.predictions(cell.model, cell.data), images)
    draft.add(scenario, cell.model, extra=extra, condition=cell.condition, seed=cell.seed)


def shifted_images(draft: Draft, name: str, shift: Shift) -> Artifact:
    """A shifted test set; its classes are a part of the data set's.

    Raises:
        DataError: A class that the data set lacks, or fewer than two classes.
    """
    sources = draft.sources
    if shift.data in sources.names:
        positions(sources.names[shift.data], sources.names[sources.data], of=name)
    source = read_as(shift.data, sources.shape)
    ref = catalog.BUILDERS.resolve(Ref.of("images", source=source, split="test", limit=None, seed=draft.seed))
    return Artifact("data", ref, sources.files[shift.data], label=name)


def grouped(path: str, ids: frozenset[int] | None = None) -> Artifact:
    """The groups of the test samples in a file.

    Args:
        path: The file.
        ids: Ids of the test samples, where they are known.

    Raises:
        DataError: The file cannot be read as groups, or names samples that do not exist.
    """
    unknown = sorted(set(read_groups(path)) - ids) if ids is not None else []
    if ids is not None and unknown:
        got = ", ".join(str(i) for i in unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        known = f"ids of the {len(ids)} test samples ({min(ids)}..{max(ids)})"
        raise DataError(must(f"the column sample of {path}", known, got, "see the column sample of the run's rows"))
    content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    version = f"{catalog.BUILDERS['groups'].version}|{content}"
    return Artifact("groups", catalog.BUILDERS.resolve(Ref.of("groups", path=path)), version, label=Path(path).name)


def _robust_gap(draft: Draft) -> None:
    """The same attacks on training and on test images."""
    plan = draft.suite.robust_gap
    if not plan.attacks or not plan.threats:
        return
    require_norms(plan.attacks, plan.threats)
    for model in measured(draft):
        with draft.optional("robust accuracy on training images"):
            train = draft.images("train", plan.limit)
            attacked(draft, model, plan.threats, plan.attacks)
            attacked(draft, model, plan.threats, plan.attacks, scenario="evasion_train", data=train)
