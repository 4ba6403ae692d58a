"""A model in hand, attacked and judged: ``evaluate`` with attacks of one's choice, ``attack`` with a named protocol."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from robench import catalog
from robench.errors import ConfigError, DataError, ModelError, must, one_line
from robench.metrics import stats
from robench.metrics.robust import robust_accuracy, worst_case
from robench.metrics.table import LABELS, attacked_label_doubts
from robench.metrics.validity import Verdict, verdict
from robench.progress import Progress, telling
from robench.spec import Artifact, Cell, Context, DatasetSpec, Estimate, Ref, Settings, ThreatModel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robench.data.dataset import Dataset
    from robench.scenarios.objects import Objects


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found."""

    rows: pd.DataFrame
    """One row per sample and attack, with the columns of the ``evasion`` frame."""
    robust_accuracy: Estimate
    """Share of all samples that no attack broke, with a 95 % interval."""
    clean_accuracy: Estimate
    """Share of all samples that the model gets right before any attack, with a 95 % interval."""
    x_adv: Tensor
    """Per sample the image of the attack with the lowest judged margin, (N, C, H, W), in [0, 1]."""
    validity: Verdict
    """Whether the number can be believed, with reasons."""

    def __repr__(self) -> str:
        return f"Evaluation({_summary(self)}; fields: {_names(self)})"


@dataclass(frozen=True)
class Attacked:
    """What ``attack`` found."""

    robust: Tensor
    """Whether each sample was right and stayed right, bool (N,)."""
    x_adv: Tensor
    """Each sample's adversarial image, or the one that came nearest, (N, C, H, W), in [0, 1]."""
    rows: pd.DataFrame
    """One row per sample, with the columns of the ``evasion`` frame; ``stage`` says what broke it."""
    validity: Verdict
    """Whether the number can be believed, with reasons."""
    waterfall: pd.DataFrame
    """One row per stage: samples given, broken and remaining, seconds and passes."""
    escalated: tuple[str, ...] = ()
    """Why the protocol went beyond its ordinary stages; empty where it did not."""

    @property
    def robust_accuracy(self) -> Estimate:
        """Share of all samples that stayed right, with a 95 % interval."""
        return robust_accuracy(self.rows)

    @property
    def clean_accuracy(self) -> Estimate:
        """Share of all samples that were right before any attack, with a 95 % interval."""
        return _clean_accuracy(self.rows)

    def __repr__(self) -> str:
        escalated = f"; escalated: {one_line('; '.join(self.escalated), _SHOWN)}" if self.escalated else ""
        return f"Attacked({_summary(self)}{escalated}; fields: {_names(self)})"


_SHOWN = 160
"""Most characters of a reason in a summary."""


def _clean_accuracy(rows: pd.DataFrame) -> Estimate:
    return stats.rate(worst_case(rows)["score_clean"])


def _judged(rows: pd.DataFrame, watch: pd.DataFrame) -> Verdict:
    """The verdict on a model in hand; doubts of its labels or preparation are notes, and warnings of Python's."""
    doubts = attacked_label_doubts(rows)
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=3)  # told of the line that called evaluate or attack
    found = verdict(rows, watch)
    return replace(found, notes=(*doubts, *found.notes))


def _summary(result: Evaluation | Attacked) -> str:
    """Robust and clean accuracy, and the verdict with its first reason, else a doubt of labels; no rows and no tensors."""
    rate, validity = result.robust_accuracy, result.validity
    more = f" (and {len(validity.reasons) - 1} more)" if len(validity.reasons) > 1 else ""
    reason = f": {one_line(validity.reasons[0], _SHOWN)}{more}" if validity.reasons else ""
    low, high = (f"{100 * end:.1f}" for end in (rate.low, rate.high))
    doubts = "".join(f"; {one_line(note, _SHOWN)}" for note in validity.notes if note.startswith(LABELS))
    clean = f"clean accuracy {100 * result.clean_accuracy.value:.1f} %"
    robust = f"robust accuracy {100 * rate.value:.1f} % [{low}, {high}]"
    return f"{robust}, {clean}, n = {rate.n}, {validity.status}{reason}{doubts}"


def _names(result: Evaluation | Attacked) -> str:
    names = [field.name for field in fields(result)]
    derived = [name for name in ("robust_accuracy", "clean_accuracy") if name not in names]
    return ", ".join([*derived, *names])


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    *,
    threat: str = "linf(8/255)",
    attacks: Sequence[str] = ("noise", "pgd(steps=40)", "pgd(steps=40, loss='margin')"),
    seed: int = 0,
    device: str | None = None,
    batch_size: int | None = None,
    verbose: bool | None = None,
) -> Evaluation:
    """Attack a model and judge it: per-sample worst case over the attacks, with a validity verdict.

    Args:
        model: A module, or a function, that takes float32 images (N, C, H, W) in [0, 1] and returns logits (N, K) or what
            ``robench.gate.logits_of`` takes for them; it is left as it was.
        x: Images (N, C, H, W), float32 in [0, 1].
        y: Labels (N,), integers in [0, K).
        threat: ``norm(eps)``, eps in units of [0, 1], e.g. ``linf(8/255)``.
        attacks: References such as ``pgd(steps=40)`` or ``art:SquareAttack(max_iter=100)``.
        seed: Seed of every draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; None keeps the model where it is.
        batch_size: Samples held at once; results do not depend on it.
        verbose: Whether a line on stderr shows what is being done; by default where stderr is a terminal.

    Raises:
        ConfigError: Unknown attack, argument or threat.
        DataError: Images outside [0, 1], NaN, labels out of range.
        ModelError: Non-finite weights, or a model that changes while it is measured.

    Source: Croce & Hein, ICML 2020 (per-sample worst case).
    """
    if not attacks or isinstance(attacks, str):
        raise ConfigError(must("attacks", "at least one attack", list(attacks), "e.g. attacks=['pgd(steps=40)']"))
    told: dict[str, Any] = {"threat": threat, "seed": seed, "device": device, "batch_size": batch_size}
    with telling(verbose=verbose) as tell, _opened(model, x, y, attacks=attacks, **told) as objects:
        frame, x_adv = _attack_all(objects, attacks, ThreatModel.parse(threat), tell)
        tell("checking gradients", 0, 1)
        watch = _watch(objects, threat)
    return Evaluation(frame, robust_accuracy(frame), _clean_accuracy(frame), x_adv, _judged(frame, watch))


def attack(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    *,
    threat: str = "linf(8/255)",
    protocol: str = "robench-standard",
    seed: int = 0,
    device: str | None = None,
    batch_size: int | None = None,
    search_precision: str = "float32",
    verbose: bool | None = None,
) -> Attacked:
    """Attack a model with a named protocol and judge it.

    Args:
        model: A module, or a function, that takes float32 images (N, C, H, W) in [0, 1] and returns logits (N, K) or what
            ``robench.gate.logits_of`` takes for them; it is left as it was.
        x: Images (N, C, H, W), float32 in [0, 1].
        y: Labels (N,), integers in [0, K).
        threat: ``norm(eps)``, eps in units of [0, 1], e.g. ``linf(8/255)``.
        protocol: ``robench-standard``, ``autoattack-standard``, ...; ``robench list attacks`` names them.
        seed: Seed of every draw.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; None keeps the model where it is.
        batch_size: Samples judged at once; results do not depend on it.
        search_precision: ``float32``, or ``bfloat16``: ``robench-standard`` and ``robench-deep`` then search with a copy of
            the model in lower precision (linf, l2); whatever it finds is confirmed by the model itself in float32. The
            others search in float32, and a warning says so.
        verbose: Whether a line on stderr shows the stages; by default where stderr is a terminal.

    Raises:
        ConfigError: Unknown protocol, precision or threat, or a norm that the protocol does not attack.
        DataError: Images outside [0, 1], NaN, labels out of range.
        ModelError: Non-finite weights, or a model that changes while it is measured.
    """
    import torch

    from robench.scenarios.evasion import is_protocol, protocol_rows

    if not is_protocol(protocol):
        known = ", ".join(n for n, e in catalog.ATTACKS.items() if e.facts.get("protocol"))
        raise ConfigError(must("a protocol", f"one of {known}", protocol, "attacks of one's choice go to robench.evaluate"))
    told: dict[str, Any] = {"threat": threat, "seed": seed, "device": device, "batch_size": batch_size}
    settings = Settings(search_precision=search_precision)
    lowers = catalog.ATTACKS[protocol].facts.get("lowers", ())
    if search_precision != "float32" and ThreatModel.parse(threat).norm not in lowers:
        log.warning("%s at %s searches in float32, not in %s", protocol, threat, search_precision)
    with (
        telling(verbose=verbose) as tell,
        _opened(model, x, y, attacks=[protocol], settings=settings, **told) as objects,
    ):
        parsed = ThreatModel.parse(threat)
        engine, rows = protocol_rows(objects, attack=protocol, threat=parsed, seed=seed, progress=tell)
        tell("checking gradients", 0, 1)
        watch = _watch(objects, threat)
    frame = pd.DataFrame(rows).assign(**_lead("evasion", objects))
    robust = torch.tensor(((frame["score_adv"] > 0) & (frame["status"] == "ok")).to_numpy())
    stages = pd.DataFrame([asdict(stage) for stage in engine.waterfall])
    return Attacked(robust, engine.best, frame, _judged(frame, watch), stages, tuple(dict.fromkeys(engine.escalated)))


@contextmanager
def _opened(
    model: nn.Module | Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    *,
    threat: str,
    attacks: Sequence[str],
    seed: int,
    device: str | None,
    batch_size: int | None,
    settings: Settings | None = None,
) -> Iterator[Objects]:
    """Model and images, checked, as a scenario takes them; the model goes back as it came."""
    import torch

    from robench.admission import admit, as_module, own_autograd, own_images
    from robench.data.checks import check_images, check_labels
    from robench.devices import exact_arithmetic, resolve_device
    from robench.inference import require_finite_weights, untouched

    parsed, settings = ThreatModel.parse(threat), settings or Settings()
    for name in attacks:
        _require_usable(catalog.ATTACKS.resolve(name), parsed)
    check_images(x)
    with own_autograd(), exact_arithmetic():
        own = as_module(model)
        require_finite_weights(own)
        unmet = _unmet(own)  # before any image
        here = next((p.device for p in own.parameters()), torch.device("cpu"))
        where = str(here) if device is None else resolve_device(device)
        with _moved(own, here, where), untouched(own):
            images = own_images(x).to(where)
            admitted = admit(own, images, width=settings.width)
            for note in admitted.notes:
                log.warning("the model %s", note)
            labels = own_images(check_labels(y, admitted.logits.shape[1]))
            if len(y) != len(x):
                raise DataError(must("labels", f"as many as images ({len(x)})", len(y), "give one class index per image"))
            data = _in_memory(images.cpu(), labels.cpu(), admitted.logits.shape[1])
            context = Context("", where, batch_size or 256)
            objects = _objects(admitted.net, data, seed, context, settings)
            yield replace(objects, fresh=_fresh(unmet, images, where, settings.width))


def _unmet(model: nn.Module) -> nn.Module | ModelError:
    """A copy of the model before it meets any image, or why it cannot be copied."""
    from robench.admission import own_copy
    from robench.devices import is_out_of_memory

    try:
        return own_copy(model)
    except Exception as error:  # a user's own __deepcopy__ may raise anything
        if is_out_of_memory(error):
            raise
        got = f"{type(error).__name__}: {error}"
        found = ModelError(must("the model", "one that can be copied", got, "give it a __deepcopy__ that works"))
        log.warning("the model was not examined for a memory of earlier images: %s", found)
        return found


def _fresh(unmet: nn.Module | ModelError, images: Tensor, where: str, width: int) -> Callable[[], nn.Module]:
    """Makes copies of a model that has met no image, ready to be asked as the model itself is; it raises the error."""
    import torch

    from robench.admission import admit, own_copy

    def make() -> nn.Module:
        if isinstance(unmet, ModelError):
            raise unmet
        noise = torch.rand(images[:width].shape, generator=torch.Generator().manual_seed(0)).to(where)
        return admit(own_copy(unmet).to(where).eval(), noise, width=width).net

    return make


def _in_memory(x: Tensor, y: Tensor, classes: int) -> Dataset:
    """Images and labels in hand as a data set with the ids 0..N-1."""
    import torch

    from robench.data.dataset import Dataset

    shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
    spec = DatasetSpec("memory", tuple(map(str, range(classes))), shape, ("test",))
    return Dataset(spec, torch.arange(len(y)), y, x.__getitem__)


def _require_usable(attack: Ref, threat: ThreatModel) -> None:
    facts = catalog.ATTACKS[attack.name].facts
    norms = facts.get("norms", ())
    if threat.norm not in norms:
        expected = "one of " + ", ".join(norms)
        raise ConfigError(must(f"the norm of {attack.name}", expected, threat.norm, "choose another attack"))
    if facts.get("surrogate"):
        remedy = "transfer between the models of a run with robench.run"
        raise ConfigError(must("an attack of evaluate", "one that needs no second model", attack.name, remedy))


@contextmanager
def _moved(model: nn.Module, here: Any, there: str) -> Iterator[None]:
    """The model on another device, and back."""
    model.to(there)
    try:
        yield
    finally:
        model.to(here)


def _objects(model: nn.Module, data: Dataset, seed: int, context: Context, settings: Settings) -> Objects:
    """What a scenario is given, for a model in hand."""
    from robench.scenarios.objects import Objects
    from robench.workshop import Model

    nothing = Artifact("model", Ref("memory"))
    return Objects(Cell(Ref("memory"), "1", nothing, nothing, seed=seed, settings=settings), context, Model(model, {}), data)


def _attack_all(
    objects: Objects, attacks: Sequence[str], threat: ThreatModel, tell: Progress
) -> tuple[pd.DataFrame, Tensor]:
    """Rows of every attack, and per sample the image of the attack with the lowest judged margin."""
    import torch

    from robench.scenarios.evasion import attack_hold, hold_size, is_protocol, protocol_rows
    from robench.scenarios.fresh_copy import FreshCopy

    rows: list[dict[str, Any]] = []
    best = objects.data.images()
    lowest = torch.full((len(best),), torch.inf)
    seed = objects.cell.seed
    for count, name in enumerate(attacks, 1):
        what = f"attack {count} of {len(attacks)}, {name}"
        if is_protocol(name):
            engine, found = protocol_rows(objects, attack=name, threat=threat, seed=seed, progress=tell)
            images = engine.best
        else:
            holds = objects.holds(size=hold_size(name))
            again = FreshCopy(objects.fresh, objects.net, threat)
            parts: list[tuple[Tensor, list[dict[str, Any]]]] = []
            for hold in holds:
                tell(what, sum(len(part) for _, part in parts), len(best))
                parts.append(attack_hold(objects.net, hold, attack=name, threat=threat, seed=seed))
                again.add(hold, *parts[-1])
            again.judge()
            found = [row for _, part in parts for row in part]
            images = torch.cat([x_adv for x_adv, _ in parts]).cpu()
        margin = torch.tensor([row["margin_adv"] for row in found])
        better = margin < lowest
        best[better] = images[better]
        lowest = torch.where(better, margin, lowest)
        rows.extend(found)
    return pd.DataFrame(rows).assign(**_lead("evasion", objects)), best


def _watch(objects: Objects, threat: str) -> pd.DataFrame:
    """The sentinel's rows for a model in hand."""
    from robench.scenarios.sentinel import sentinel

    return pd.DataFrame(sentinel(objects, threat=threat)).assign(**_lead("sentinel", objects))


def _lead(scenario: str, objects: Objects) -> dict[str, Any]:
    seed = objects.cell.seed
    return {"model": "model", "dataset": "memory", "scenario": scenario, "condition": "", "seed": seed, "cell": ""}
