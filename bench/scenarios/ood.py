"""Scores of detectors on the data set's own images and on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from robench import catalog
from robench.builders.attacked import Attacked
from robench.builders.predictions import Predictions
from robench.data.dataset import Dataset
from robench.errors import NoGradientError
from robench.inference import untouched
from robench.ood.outputs import Known, Scorer, Seen, linear_head, missing
from robench.registry import facts
from robench.scenarios.objects import Objects, columns
from robench.spec import Artifact, Context, Ref
from robench.workshop import load, load_model

_AT_ONCE = 512
"""Images that are scored at once, whatever ``--batch-size`` says, so that nothing depends on it."""


@dataclass(frozen=True, eq=False)
class Group:
    """Images of one kind, with what the model says of them."""

    source: str
    """Empty for the data set's own."""
    ids: Tensor
    seen: Seen
    images: Callable[[Tensor], Tensor]
    """Images of some rows, read for the detectors that need them."""


@facts(version=1)
def ood(
    objects: Objects,
    *,
    sources: tuple[str, ...] = (),
    detectors: tuple[str, ...] = ("msp",),
    fitted: bool = True,
) -> list[dict[str, Any]]:
    """One row per image and detector; higher scores are more like the data set's own images (``is_id``).

    A detector that does not apply has one row per source, ``status`` ``skipped`` with the reason in ``error``; so has a
    source without images. The further artifacts are the model's predictions on training images (if ``fitted``), on the
    test images, and on every source; or an attack's images, of which those count that the attack broke.
    """
    train = objects.cell.extra[0] if fitted else None
    first = 1 if fitted else 0
    groups = [_group(objects, first + i, source) for i, source in enumerate(("", *sources))]
    rows: list[dict[str, Any]] = []
    with untouched(objects.net):
        for name in detectors:
            found = _scored(objects, train, name, groups)
            rows += [{"detector": name, **row} for row in found]
    return rows


def _scored(objects: Objects, train: Artifact | None, name: str, groups: list[Group]) -> Iterator[dict[str, Any]]:
    """Rows of one detector: on all groups, or the reason why there are none."""
    scorer, reason = _fitted(objects.cell.model, train, name, objects.context, objects.cell.settings.width)
    parts: list[Tensor] = []
    look = catalog.DETECTORS[Ref.parse(name).name].facts["needs"] == "gradient"
    try:
        parts = [_scores(scorer, objects, group, look) for group in groups] if scorer else []
    except NoGradientError as error:
        reason = str(error)
    if not parts:
        for group in groups[1:]:
            yield _skipped(group.source, reason)
        return
    for group, scores in zip(groups, parts, strict=True):
        told: dict[str, Any] = {"source": group.source, "is_id": not group.source, "status": "ok", "error": ""}
        if len(scores):
            yield from columns(sample=group.ids, score=scores, **told)
        else:
            yield _skipped(group.source, "there is no image of this source: an attack that breaks nothing leaves none")


def _skipped(source: str, reason: str) -> dict[str, Any]:
    told = {"source": source, "is_id": False, "status": "skipped", "error": reason}
    return {"sample": -1, "score": math.nan, **told}


def _scores(scorer: Scorer, objects: Objects, group: Group, look: bool) -> Tensor:
    """Scores (N,) in parts of a fixed size."""
    parts = [torch.zeros(0, dtype=torch.float64)]
    for rows in torch.arange(len(group.ids)).split(_AT_ONCE) if len(group.ids) else ():
        images = group.images(rows).to(objects.context.device) if look else None
        parts.append(scorer(Seen(group.seen.logits[rows], group.seen.features[rows], images)))
    return torch.cat(parts)


def _group(objects: Objects, position: int, source: str) -> Group:
    """The cell's slice of a further artifact."""
    found = objects.extra(position)
    if isinstance(found, Attacked):
        chosen = (found.broken & ~found.failed).nonzero().flatten()
        rows = chosen[torch.isin(chosen, _shard(objects, len(found.seen)))]
        return _of(source, found.seen, rows, found.images.__getitem__)
    seen: Predictions = found
    data: Dataset = load(objects.cell.extra[position].inputs[1], objects.context)
    return _of(source, seen, _shard(objects, len(seen)), data.images)


def _shard(objects: Objects, count: int) -> Tensor:
    index, of = objects.cell.shard
    return torch.arange(index, count, of)


def _of(source: str, seen: Predictions, rows: Tensor, images: Callable[[Tensor], Tensor]) -> Group:
    part = seen.take(rows)
    return Group(source, part.ids, Seen(part.logits, part.features), lambda some: images(rows[some]))


@lru_cache(maxsize=32)
def _fitted(model: Artifact, train: Artifact | None, name: str, context: Context, width: int) -> tuple[Scorer | None, str]:
    """A detector fitted on the model's training images, or the reason why it cannot be; kept for the next cell."""
    known = _known(model, train, context, width)
    ref = catalog.DETECTORS.resolve(name)
    entry = catalog.DETECTORS[ref.name]
    reason = missing(str(entry.facts["needs"]), known)
    return (None, reason) if reason else (entry.load()(known, **ref.kwargs), "")


@lru_cache(maxsize=1)
def _known(model: Artifact, train: Artifact | None, context: Context, width: int) -> Known:
    net = load_model(model, context).net
    if train is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        return Known(Seen(torch.zeros(0, 0), torch.zeros(0, 1)), nothing, net=net, width=width)
    seen: Predictions = load(train, context)
    given = Seen(seen.logits, seen.features)
    return Known(given, seen.labels, head=linear_head(net, given), net=net, width=width)
