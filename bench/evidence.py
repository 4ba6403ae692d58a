"""Broken images kept as evidence, with lineage and hashes, and judged again later without any attack code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import safetensors
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save
from torch import Tensor, nn

from robench.devices import exact_arithmetic, resolve_device
from robench.errors import ModelError, RobenchError, StoreError, must
from robench.inference import fingerprint, untouched
from robench.judge import Verdicts, decide
from robench.lineage import cell_of, lineage, planned
from robench.ops.norms import Ball, distance, per_sample
from robench.progress import telling
from robench.spec import SCHEMA, Artifact, Cell, Context, ThreatModel, canonical, sha256
from robench.store import Finished, Store
from robench.task import CLASSIFICATION, Task

if TYPE_CHECKING:
    from robench.scenarios.objects import Objects

HALVINGS = 7
"""Bisections for the longest perturbation whose 8-bit image is still in the ball: it is found within 1 %."""
EDGE = 1e-4
"""Promise 2 of docs/architecture.md: floats within 1e-4 in other batches, verdicts equal but where |margin| is less."""
_SLACK = 1e-5
"""In units of 1/255: what float32 pixels are off their 8-bit values, and far below the judge's tolerance."""
_ANEW = "run the same command with --save-adversarials again: it computes the cells that lack their images"
Sourced = tuple[tuple[str, str], ...]
"""Where the user's files are: (sha256, path)."""
_SHOWN = 12
"""Samples that one line of differences names."""


@dataclass(frozen=True)
class Evidence:
    """A cell's broken images, ready to be written."""

    images: bytes
    """Content of a safetensors file: ``images`` float32 (B, C, H, W), ``ids`` (B,), ``images_8bit`` uint8, ``ids_8bit``."""
    header: dict[str, Any]


@dataclass(frozen=True)
class Replay:
    """What ``verify`` found."""

    cells: int
    images: int
    images_8bit: int
    differences: tuple[str, ...]
    """One line per finding; none when every verdict is the same."""
    without: int
    """Finished evasion cells whose images were not asked for."""


def eight_bit(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    """The 8-bit image in the ball that comes near each adversarial one, uint8 (N, ...).

    In linf every pixel goes to the nearest of the 256 values within eps. In the other norms the perturbation is shrunk
    until its nearest 8-bit image lies in the ball. Where x is no 8-bit image and eps is tiny, the ball may hold none: the
    caller checks.

    Args:
        x: Clean images (N, ...), in [0, 1].
        x_adv: Images in the ball (N, ...), finite.
        threat: The ball.
    """
    return _clamped(x, x_adv, threat.eps) if threat.norm == "linf" else _shrunk(x, x_adv, threat)


def as_pixels(image: Tensor) -> Tensor:
    """float32 pixels in [0, 1] of 8-bit images."""
    return image.to(torch.float32) / 255


def _clamped(x: Tensor, x_adv: Tensor, eps: float) -> Tensor:
    centre, reach = x.double() * 255, min(eps, 1.0) * 255 + _SLACK
    low, high = (centre - reach).ceil(), (centre + reach).floor()
    return torch.minimum(torch.maximum((x_adv.double() * 255).round(), low), high).clamp(0, 255).to(torch.uint8)


def _shrunk(x: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
    delta = x_adv - x

    def at(share: Tensor) -> Tensor:
        return ((x + per_sample(share, delta) * delta) * 255).round().clamp(0, 255)

    def fits(share: Tensor) -> Tensor:
        return distance(x, at(share) / 255, threat.norm) <= threat.eps

    low, high = x.new_zeros(len(x)), x.new_ones(len(x))
    low = torch.where(fits(high), high, low)
    for _ in range(HALVINGS if bool((low < high).any()) else 0):
        middle = (low + high) / 2
        inside = fits(middle)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return at(low).to(torch.uint8)


def shown(x: Tensor, x_adv: Tensor, threat: ThreatModel, *, projected: Tensor, mistaken: Tensor) -> Tensor:
    """The images that the judge's verdicts are about, (N, ...): projected ones projected, clean mistakes clean.

    Args:
        x: Clean images (N, ...).
        x_adv: What the attack returned, (N, ...).
        threat: The ball.
        projected: Which ones the judge projected, bool (N,).
        mistaken: Which clean images are wrong already, bool (N,).
    """
    images = torch.where(per_sample(mistaken, x), x, x_adv.to(x.dtype))
    if not bool(projected.any()):
        return images
    return torch.where(per_sample(projected & ~mistaken, x), Ball(x, threat).project(images), images)


def breaks_in_8bit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    x_adv: Tensor,
    broken: Tensor,
    threat: ThreatModel,
    task: Task = CLASSIFICATION,
    width: int = 64,
    draws: int = 0,
    seed: int = 0,
) -> Tensor:
    """Which of the broken images (bool (N,)) also break as 8-bit images in the ball, by the judge: bool (N,).

    With ``draws`` a randomised model is looked at that often; then clean images stand where nothing broke, because what
    a sample draws depends on its place.
    """
    rows = broken.nonzero()[:, 0]
    found = torch.zeros_like(broken)
    if len(rows):
        images = as_pixels(eight_bit(x[rows], x_adv[rows], threat)).to(x.dtype)
        inside = Ball(x[rows], threat).contains(images)
        company = torch.arange(len(x), device=x.device) if draws else rows
        tried = x[company].index_copy(0, rows, images) if draws else images
        asked: dict[str, Any] = {"threat": threat, "task": task, "width": width, "draws": draws, "seed": seed}
        verdicts = decide(model, x[company], y[company], x_adv=tried, **asked)
        found[rows] = inside & (verdicts.broken(task)[rows] if draws else verdicts.broken(task))
    return found


def collect(
    objects: Objects, x_adv: Tensor, rows: list[dict[str, Any]], *, versions: dict[str, str], hold: int = 256
) -> Evidence:
    """The evidence of an evasion cell.

    Args:
        objects: The cell's model and images.
        x_adv: What the attack left for every sample of the shard, in order, (N, ...).
        rows: The cell's rows, in the same order.
        versions: Of what the numbers depend on.
        hold: Samples that were judged together: what a randomised model draws for an image depends on its place.
    """
    from robench.sources import absolute

    cell, data, task = objects.cell, objects.shard(), objects.model.task
    threat = ThreatModel.parse(cell.scenario.kwargs["threat"])
    places = torch.tensor([p for p, row in enumerate(rows) if row["broken"]], dtype=torch.int64)
    chosen = [rows[p] for p in places.tolist()]
    x = data.images(places)
    projected = torch.tensor([row["projected"] for row in chosen], dtype=torch.bool)
    mistaken = task.broken(torch.tensor([row["score_clean"] for row in chosen], dtype=torch.float64))
    images = shown(x, x_adv[places].to(x), threat, projected=projected, mistaken=mistaken).contiguous()
    whole = torch.tensor([row["broken_8bit"] for row in chosen], dtype=torch.bool)
    small = eight_bit(x[whole], images[whole], threat).contiguous()
    ids = data.ids[places]
    tensors = {"images": images, "ids": ids, "images_8bit": small, "ids_8bit": ids[whole]}
    told = {
        "lineage": lineage(cell), "model_fingerprint": fingerprint(objects.net), "device": objects.context.device,
        "sources": [[digest, absolute(path)] for digest, path in objects.context.sources], "versions": versions,
        "draws": max((row["draws"] for row in rows), default=0), "hold": hold, "samples": _samples(tensors, chosen),
    }  # fmt: skip
    return Evidence(save(tensors, {"cell": cell.digest}), {**_about(cell), **told})


def _about(cell: Cell) -> dict[str, Any]:
    """What a reader of the header wants to know first."""
    return {
        **{key: str(cell.scenario.kwargs[key]) for key in ("attack", "threat")},
        "model": cell.model.label,
        "dataset": cell.data.label,
        "condition": cell.condition,
        "seed": cell.seed,
    }


def _samples(tensors: dict[str, Tensor], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per broken image: sample, label, the stage that broke it and the hashes of its bytes."""
    small = _hashes(tensors, "images_8bit")
    return [
        {
            "sample": row["sample"],
            "label": row["label"],
            "stage": row["stage"] or row["attack"],
            "sha256": _hash(image),
            "sha256_8bit": small.get(row["sample"]),
        }
        for row, image in zip(rows, tensors["images"], strict=True)
    ]


def _hashes(tensors: dict[str, Tensor], name: str) -> dict[int, str]:
    """Sample → hash of its image."""
    return dict(zip(tensors[_ids(name)].tolist(), map(_hash, tensors[name]), strict=True))


def _ids(name: str) -> str:
    return name.replace("images", "ids")


def _hash(image: Tensor) -> str:
    """SHA-256 of an image's bytes, rows last, little-endian."""
    return sha256(image.contiguous().numpy().tobytes())


def verify(
    run_directory: Path | str,
    *,
    device: str = "auto",
    batch_size: int = 64,
    models: Iterable[str] = (),
    trust: bool = False,
    verbose: bool | None = None,
) -> Replay:
    """Judge a run's kept images again and compare with its rows; no attack code is imported.

    Args:
        run_directory: Made with ``--save-adversarials``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch_size: Samples held at once.
        models: Where the user's model files are now, if they moved; found by their file names.
        trust: Whether code named by the user may be executed.
        verbose: Whether a line on stderr counts the attacks; by default where stderr is a terminal.

    Raises:
        StoreError: No run directory, or one that kept no images.
        RobenchError: A model or data set of the run that is not there any more.
    """
    store = Store(run_directory, lenient=True)
    run, done = store.read_run(changed=True), store.finished()
    wanted = [d for d, about in run["cells"].items() if about["scenario"] == "evasion" and d in done]
    headers = store.image_headers()
    lost = [d for d in wanted if d not in headers and (run.get("adversarials") or store.image_files(d))]
    if not headers and not lost:
        raise StoreError(
            must("a run to verify", "one with attacks, made with --save-adversarials", str(run_directory), _ANEW)
        )
    findings = [f"{named(run['cells'][d], d)}: the header of its images is missing; {_ANEW}" for d in lost]
    cases, damaged = _cases(headers)
    context = Context(str(store.root), resolve_device(device), batch_size, trust=trust)
    context, changed = _surroundings(store, cases, context, models)
    counts = [0, 0]
    with exact_arithmetic(context.threads), telling(verbose=verbose) as tell:
        for count, case in enumerate(cases):
            tell("judging kept images, attacks", count, len(cases))
            told = changed.get(case.cell.digest) or case.replay(store, done, context, counts)
            findings += [f"{case.name}: {line}" for line in told]
    return Replay(len(cases), counts[0], counts[1], (*damaged, *findings), len(set(wanted) - set(headers) - set(lost)))


def replay(told: tuple[str, dict[str, Any]]) -> Replay:
    """``verify`` of a run directory and keywords; for a process of its own, in which this module imports no attack code."""
    return verify(told[0], **told[1])


def named(about: Mapping[str, Any], digest: str) -> str:
    """A cell for a reader: what it measures, of which model."""
    condition = f" {about['condition']}" if about["condition"] else ""
    what = f"{about['attack']} {about['threat']}" if "attack" in about else about["scenario"]
    return f"{what} on {about['model']}{condition} [{digest[:8]}]"


def _cases(headers: dict[str, Path]) -> tuple[list[_Case], list[str]]:
    cases, damaged = [], []
    for digest, path in headers.items():
        try:
            cases.append(_case(digest, path))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, RobenchError) as error:
            damaged.append(f"{path.name}: the header was changed or is damaged ({error})")
    return cases, damaged


def _case(digest: str, path: Path) -> _Case:
    """A header that is whole and speaks of the cell it is named after."""
    header = json.loads(path.read_text(encoding="utf-8"))
    if header["schema"] > SCHEMA:
        raise StoreError(must("the evidence's schema", f"at most {SCHEMA}", header["schema"], "update robench"))
    if header["schema"] != SCHEMA:
        raise ValueError(f"its schema is {header['schema']}, an older one")
    cell = cell_of(header["lineage"])
    if not cell.digest == header["digest"] == digest:
        raise ValueError("its digest or lineage belongs to another cell")
    for field, value in _about(cell).items():
        if header[field] != value:
            raise ValueError(f"its {field} is {header[field]!r}, that of its cell {value!r}")
    _require_fields(header)
    if header["header_sha256"] != sha256(canonical({k: v for k, v in header.items() if k != "header_sha256"})):
        raise ValueError("its own hash does not fit")
    return _Case(cell, header, path.with_name(header["file"]))


def _require_fields(header: dict[str, Any]) -> None:
    """Refuse a header whose fields are not of the kinds that judging needs."""
    kinds = {"file": str, "content": str, "model_fingerprint": str, "device": str, "draws": int, "hold": int}
    kinds |= {"samples": list, "sources": list}
    parts = {"sample": int, "label": int, "stage": str, "sha256": str, "sha256_8bit": str | None}
    for field, kind in kinds.items():
        if not isinstance(header[field], kind):
            raise ValueError(f"its {field} is {header[field]!r}")
    for sample in header["samples"]:
        for field, part in parts.items():
            if not isinstance(sample[field], part):
                raise ValueError(f"{field} of one of its samples is {sample[field]!r}")
    dict(header["sources"])
    if header["hold"] < 1:
        raise ValueError(f"its hold is {header['hold']}")


@dataclass(frozen=True)
class _Case:
    """One cell's evidence."""

    cell: Cell
    header: dict[str, Any]
    file: Path

    @property
    def name(self) -> str:
        return named(planned(self.cell), self.cell.digest)

    def replay(self, store: Store, done: dict[str, Finished], context: Context, counts: list[int]) -> list[str]:
        """What differs; the numbers of images judged are added to ``counts``."""
        tensors, changed = self._images()
        if changed:
            return changed
        if self.cell.digest not in done:
            return ["there are no rows to compare with; run the same command again"]
        try:
            rows = store.rows(done[self.cell.digest])
        except StoreError as error:
            return [str(error)]
        if not rows["sample"].is_unique:
            return ["column sample holds a sample twice"]
        return self._incomplete(rows) or self._unlike(rows) or self._judged(tensors, rows, context, counts)

    def _images(self) -> tuple[dict[str, Tensor], list[str]]:
        """The stored tensors, and what was changed since they were written."""
        try:
            content = self.file.read_bytes()
            tensors = read_tensors(content)
            found = {"sha256": _hashes(tensors, "images"), "sha256_8bit": _hashes(tensors, "images_8bit")}
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            return {}, [f"{self.file.name} cannot be read ({error}); remove it, and {_ANEW}"]
        changed = [
            f"sample {s['sample']}: the {'8-bit' if key.endswith('8bit') else 'float32'} image was changed"
            for s in self.header["samples"]
            for key in found
            if found[key].get(s["sample"]) != s[key]
        ]
        strangers = [i for key in found for i in set(found[key]) - {s["sample"] for s in self.header["samples"] if s[key]}]
        if not changed and (strangers or sha256(content) != self.header["content"]):
            changed = [f"{self.file.name} has other bytes than when it was written"]
        return tensors, changed

    def _incomplete(self, rows: pd.DataFrame) -> list[str]:
        """Broken samples of the rows without an image, and images of samples that the rows do not call broken."""
        kept = {s["sample"]: s["sha256_8bit"] is not None for s in self.header["samples"]}
        stored = rows[rows["broken"].astype(bool)].set_index("sample")["broken_8bit"].astype(bool).to_dict()
        differ = sorted(s for s in {*kept, *stored} if kept.get(s) != stored.get(s))
        return (
            [f"samples {_list(differ)}: the rows and the images do not speak of the same verdicts (broken, broken_8bit)"]
            if differ
            else []
        )

    def _unlike(self, rows: pd.DataFrame) -> list[str]:
        """What the header says of its samples otherwise than the rows do."""
        told = rows.set_index("sample")
        lines = []
        for sample in self.header["samples"]:
            row = told.loc[sample["sample"]]
            own = {"label": int(row["label"]), "stage": row["stage"] or row["attack"]}
            lines += [f"sample {sample['sample']}: {k} is {sample[k]!r} in the header of the images, {v!r} in the rows"
                      for k, v in own.items() if sample[k] != v]  # fmt: skip
        draws = int(rows["draws"].max()) if len(rows) else 0
        return lines + ([f"draws is {self.draws} in the header of the images, {draws} in the rows"] * (self.draws != draws))

    def _judged(self, tensors: dict[str, Tensor], told: pd.DataFrame, context: Context, counts: list[int]) -> list[str]:
        from robench.scenarios.objects import open_cell

        objects = open_cell(self.cell, context)
        if fingerprint(objects.net) != self.header["model_fingerprint"]:
            return ["the model has other weights than the one that was attacked"]
        if {tuple(tensors[n].shape[1:]) for n in ("images", "images_8bit")} != {tuple(objects.data.spec.shape)}:
            return [f"the images are not of the data's shape {tuple(objects.data.spec.shape)}"]
        strangers = sorted({*tensors["ids"].tolist(), *tensors["ids_8bit"].tolist()} - {*objects.shard().ids.tolist()})
        if strangers:
            return [f"samples {_list(strangers)} are none of the cell's images"]
        with untouched(objects.net):
            lines = []
            for number, name in enumerate(("images", "images_8bit")):
                lines += self._compare(objects, tensors[name], tensors[_ids(name)], name, told)
                counts[number] += len(tensors[name])
        return lines

    def _compare(
        self, objects: Objects, images: Tensor, ids: Tensor, name: str, told_rows: pd.DataFrame | None = None
    ) -> list[str]:
        """Ball, box and verdict of every image, each one broken when it was written, and what the rows say of it."""
        threat, data, lines = ThreatModel.parse(self.cell.scenario.kwargs["threat"]), objects.shard(), []
        places = {sample: place for place, sample in enumerate(data.ids.tolist())}
        labels = {s["sample"]: s["label"] for s in self.header["samples"]}
        kind = "8-bit" if name == "images_8bit" else "float32"
        rows = torch.tensor([places[i] for i in ids.tolist()], dtype=torch.int64)
        for part, company, where in self._groups(rows, len(data), objects.context.batch_size):
            x, y = data.images(company).to(objects.context.device), data.labels[company].to(objects.context.device)
            found = images[part].to(x.device)
            x_adv = x.index_copy(0, where.to(x.device), as_pixels(found) if found.dtype == torch.uint8 else found)
            verdicts = self._decided(objects, x, y, x_adv, threat)
            reached = {
                "same": y.cpu() == torch.tensor([labels.get(i, -1) for i in data.ids[company].tolist()]),
                "inside": Ball(x, threat).contains(x_adv),
                "distance": distance(x, x_adv, threat.norm),
                "broken": verdicts.broken(objects.model.task) | (verdicts.unstable & bool(self.draws)),
                "margin": verdicts.margin,
            }
            told = zip(*(value.cpu()[where].tolist() for value in reached.values()), strict=True)
            for sample, values in zip(ids[part].tolist(), told, strict=True):
                why = _why(**dict(zip(reached, values, strict=True)))
                lines += [f"sample {sample}, {kind}: {why}"] if why else []
            if told_rows is not None and name == "images" and self._same_place(objects.context):
                seen = {key: value.cpu()[where].tolist() for key, value in _columns(verdicts).items()}
                lines += _unlike_judge(told_rows.set_index("sample"), ids[part].tolist(), seen)
        return lines

    def _same_place(self, context: Context) -> bool:
        """Whether a randomised model draws here what it drew in the run; of any other the place does not matter."""
        return not self.draws or str(self.header["device"]) == context.device

    @property
    def draws(self) -> int:
        """How often each image of a randomised model was looked at; 0 for a model without randomness."""
        return int(self.header.get("draws", 0))

    def _groups(self, rows: Tensor, count: int, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The images that are looked at together, the samples of the shard they stand among, and their places there.

        A randomised model meets every image where it stood in the run, among clean ones, and so with the same draws.
        """
        every = torch.arange(len(rows))
        if not self.draws:
            yield from ((part, rows[part], torch.arange(len(part))) for part in every.split(size) if len(part))
            return
        for company in torch.arange(count).split(int(self.header["hold"])):
            part = every[torch.isin(rows, company)]
            if len(part):
                yield part, company, rows[part] - company[0]

    def _decided(self, objects: Objects, x: Tensor, y: Tensor, x_adv: Tensor, threat: ThreatModel) -> Verdicts:
        asked: dict[str, Any] = {"threat": threat, "task": objects.model.task, "width": self.cell.settings.width}
        return decide(objects.net, x, y, x_adv=x_adv, draws=self.draws, seed=self.cell.seed, **asked)


def _columns(verdicts: Verdicts) -> dict[str, Tensor]:
    """Column of the rows → what the judge says."""
    return {
        "score_adv": verdicts.score,
        "score_mean": verdicts.mean,
        "score_worst": verdicts.worst,
        "pred_adv": verdicts.prediction,
        "margin_adv": verdicts.margin,
        "distance": verdicts.distance,
        "unstable": verdicts.unstable,
    }


def _unlike_judge(rows: pd.DataFrame, samples: list[int], seen: dict[str, list[Any]]) -> list[str]:
    """Where the rows say otherwise than the judge; a sample on the edge may fall to either side in another batch."""
    lines = []
    for position, sample in enumerate(samples):
        row, edge = rows.loc[sample], abs(seen["margin_adv"][position]) < EDGE
        for column, values in seen.items():
            value = values[position]
            if column.startswith("score"):
                value = min(value, float(row["score_clean"]))
            if not close(row[column], value) and not (edge and column != "distance"):
                lines.append(f"sample {sample}: {column} is {row[column]!r} in the rows, and {value!r} when judged again")
    return lines


def close(stored: Any, again: Any) -> bool:
    """Whether two values are equal as promised for other widths and devices: numbers within 1e-4, relative above 1."""
    if isinstance(stored, str) or isinstance(again, str):
        return str(stored) == str(again)
    one, other = float(stored), float(again)
    return (math.isnan(one) and math.isnan(other)) or one == other or abs(one - other) <= EDGE * max(1.0, abs(other))


def _list(samples: list[int]) -> str:
    more = f" and {len(samples) - _SHOWN} more" if len(samples) > _SHOWN else ""
    return ", ".join(map(str, samples[:_SHOWN])) + more


def _why(*, same: bool, inside: bool, distance: float, broken: bool, margin: float) -> str:
    """Why an image is no longer what the run said of it; nothing when it is."""
    if not same:
        return "the label of the sample is another one"
    if not inside:
        return f"outside the ball or the box (distance {distance:.9g})"
    if not broken:
        return f"was broken, and is not now (margin {margin:.3g})"
    return ""


def _surroundings(
    store: Store, cases: list[_Case], context: Context, models: Iterable[str]
) -> tuple[Context, dict[str, list[str]]]:
    """The context that finds what the lineages name, and per cell what is no longer what it was.

    Raises:
        RobenchError: A data set or a model file that is not there.
    """
    present: set[str] = set()
    paths: tuple[tuple[str, str], ...] = ()
    for source in sorted({str(a.builder.kwargs["source"]) for c in cases for a in _leaves(c.cell) if _is(a, "images")}):
        found, sources = _present(source, cases, tuple(models), context.trust)
        present, paths = present | found, (*paths, *sources)
    context = replace(context, sources=paths)
    return context, {case.cell.digest: _gone(case.cell, present, store) for case in cases}


def _is(artifact: Artifact, builder: str) -> bool:
    return artifact.builder.name == builder


def _leaves(value: Cell | Artifact) -> Iterator[Artifact]:
    """What a cell's model and images are made from, and they themselves."""
    for below in (value.model, value.data) if isinstance(value, Cell) else value.inputs:
        yield below
        yield from _leaves(below)


def _present(source: str, cases: list[_Case], models: tuple[str, ...], trust: bool) -> tuple[set[str], Sourced]:
    """Digests of the artifacts of one data set that are there now, by content, and where the user's files are."""
    from robench.sources import UserModel, listed, resolve_sources

    users, leaves = {}, {a.digest: a for c in cases for a in _leaves(c.cell)}
    known = {digest: path for c in cases for digest, path in c.header["sources"]}
    named = {model.label: model.source for model in listed(models)}
    for leaf in (a for a in leaves.values() if _is(a, "file")):
        told = leaf.builder.kwargs
        path = named.get(leaf.label, known.get(told["sha256"], leaf.label))
        require_file(path)
        users[leaf.digest] = UserModel(
            path,
            told["arch"],
            told["mean"],
            told["std"],
            (told["low"], told["high"]),
            told["num_classes"] or None,
            leaf.label,
        )
    found, paths = resolve_sources(source, users.values(), trust=trust)
    data = [a for a in leaves.values() if _is(a, "images") and a.builder.kwargs["source"] == source]
    now = {replace(a, version=found.splits.get(a.builder.kwargs["split"], "")).digest for a in data}
    return now | {a.digest for a in found.models.values()}, paths


def require_file(source: str) -> None:
    """Refuse a model file that is neither where it was nor where ``--model`` says."""
    path = Path(source.rpartition(":")[0] or source)
    if (path.suffix == ".py" or ":" not in source) and not path.is_file():
        raise ModelError(must("the model of the run", "where it was", str(path), "say where it is now with --model"))


def _gone(cell: Cell, present: set[str], store: Store) -> list[str]:
    """Why a cell's model or images are no longer those of the run."""
    lines = []
    for artifact in _leaves(cell):
        if artifact.stored:
            if not (store.root / "artifacts" / artifact.digest / "header.json").is_file():
                lines.append(f"{artifact.builder} is not in the run directory any more")
        elif artifact.builder.name in ("images", "zoo", "file") and artifact.digest not in present:
            lines.append(f"the content of {artifact.label or artifact.builder} is not what the run measured")
    return lines
