"""Every model of the user's is tried out before a run, in a process of its own: can it be asked, and is it right at all?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from robench.children import Child
from robench.data.classes import require_logits
from robench.errors import ModelError, StoreError, must
from robench.metrics.label_checks import label_warnings
from robench.plan import Plan
from robench.progress import WARNING
from robench.spec import Artifact, Cell, Context
from robench.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robench.admission import Admitted


def try_out(plan: Plan, context: Context, say: Callable[[str], None], *, timeout_s: float | None = None) -> Child | None:
    """Say what each user model is like on images spread over its data; the child that tried them out, for the run.

    A model that cannot be asked ends the run here. One that ends its process, or takes longer than ``timeout_s``
    seconds, is told: its cells will fail, and those of the other models are computed.

    Raises:
        ModelError: The model cannot be loaded, does not fit the images or their classes, or is to be attacked from a
            model of other classes.
    """
    shown = _shown(plan.cells)
    pairs = [cell for cell in plan.cells if cell.extra and "file" in (cell.model.builder.name, cell.extra[0].builder.name)]
    child: Child | None = None
    ended: set[str] = set()
    try:
        for look, cell in [*((_shown_look, cell) for cell in shown), *((_pair_look, cell) for cell in pairs)]:
            if ended & {cell.model.digest, *(a.digest for a in cell.extra[:1])}:
                continue
            child = child or Child()
            answer = child.call(look, (cell, context), timeout_s=timeout_s)
            child = None if answer.gone else child
            if answer.gone or answer.kind in ("SystemExit", "ExitError"):
                ended.add(cell.model.digest)
                say(f"{cell.model.label}: cannot be tried out, so its cells will fail: {answer.error}")
                continue
            for text in answer.result(f"the model {cell.model.label}"):
                say(text)
    except BaseException:
        if child:
            child.kill()
        raise
    return child


def _shown(cells: Sequence[Cell]) -> list[Cell]:
    """One cell for each model of the user's as it comes, of clean test images where there is one."""
    found: dict[str, Cell] = {}
    for cell in cells:
        if cell.model.builder.name == "file" and not cell.condition:
            clean = cell.scenario.name == "clean" and cell.scenario.kwargs["split"] == "test"
            if clean or cell.model.digest not in found:
                found[cell.model.digest] = cell
    return list(found.values())


def _shown_look(asked: tuple[Cell, Context]) -> list[str]:
    """What is said of a cell's model; runs in the child."""
    from robench.admission import own_autograd
    from robench.devices import exact_arithmetic

    with own_autograd(), exact_arithmetic(asked[1].threads):
        return _look(*asked)


def _pair_look(asked: tuple[Cell, Context]) -> list[str]:
    """Nothing to say of a cell's two models, when they have the same classes; runs in the child."""
    from robench.admission import own_autograd
    from robench.devices import exact_arithmetic

    with own_autograd(), exact_arithmetic(asked[1].threads):
        _require_same_logits(*asked)
    return []


def _look(cell: Cell, context: Context) -> list[str]:
    """What a model is like on images spread over its data, in words.

    Raises:
        ModelError: Another number of logits than of classes, or a model that robench cannot ask.
    """
    from robench.workshop import load as load_artifact
    from robench.workshop import load_model

    data, name = load_artifact(cell.data, context), cell.model.label
    admitted = _admitted(cell.model, cell, context)
    _require_kept(cell, context, admitted, _spread(len(data), cell.settings.width))
    source = str(cell.data.builder.kwargs["source"])
    require_logits(data.spec, int(admitted.logits.shape[1]), model=name, source=source)
    predicted, labels = admitted.logits.argmax(1).cpu(), data.labels[_spread(len(data), cell.settings.width)]
    count, right = len(labels), int((predicted == labels).sum())
    which = f"all {count} images" if count == len(data) else f"{count} of {len(data)} images"
    said = f"{name}: clean accuracy {right / count:.1%} on {which}, as robench sees the model"
    notes = dict.fromkeys([*load_model(cell.model, context).notes, *admitted.notes])
    doubts = [*label_warnings(labels.numpy(), predicted.numpy()), *_probabilities(admitted.logits)]
    return [*(f"{name} {note}" for note in notes), said, *(f"{WARNING}{name}: {line}" for line in doubts)]


def _probabilities(outputs: Tensor) -> list[str]:
    """A line where all outputs (n, K) are probabilities: confidence, ECE and losses take another softmax of them."""
    alike = bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())
    return ["probabilities, not logits: its ECE, confidence and losses would be wrong; return logits"] if alike else []


def _require_kept(cell: Cell, context: Context, admitted: Admitted, places: Sequence[int]) -> None:
    """Refuse to keep results that the model would not give any more, whatever its identity says.

    Weights may hide where no hash reaches: in another runtime's session, or in a file that is read when it is first asked.

    Raises:
        StoreError: The model answers otherwise on images that a finished cell holds.
    """
    import torch

    from robench.inference import predict
    from robench.scenarios.fresh_copy import TOLERANCE
    from robench.task import CLASSIFICATION
    from robench.workshop import load as load_artifact

    entry = Store(context.root).finished().get(cell.digest)
    if entry is None or cell.scenario.name != "clean":
        return
    shown = load_artifact(cell.data, context).take(torch.tensor(places))
    rows = Store(context.root).rows(entry).set_index("sample")["margin"].reindex(shown.ids.tolist()).to_numpy(copy=True)
    images, width = shown.images().to(context.device), cell.settings.width
    looks = [predict(admitted.net, images, width=width).double().cpu() for _ in range(2)]
    before, now = torch.as_tensor(rows), CLASSIFICATION.margin(looks[0], shown.labels)
    apart = (now - before).abs() > TOLERANCE * looks[0].norm(dim=1)
    if bool(apart.any()) and torch.equal(*looks):  # a random model answers otherwise every time
        got = f"other answers on {int(apart.sum())} of {len(before)} images"
        remedy = "something that it rests on changed and no hash shows it: choose another --out"
        raise StoreError(must(f"the model {cell.model.label}", "the one whose results this folder keeps", got, remedy))


def _spread(count: int, width: int) -> list[int]:
    """Places of at most ``width`` samples spread evenly, since data may be sorted by class."""
    shown = min(count, width)
    return [k * count // shown for k in range(shown)]


def _require_same_logits(cell: Cell, context: Context) -> None:
    """Refuse an attack from a model of other classes; one that is still to be trained takes those of the data.

    Raises:
        ModelError: The two models' outputs have different shapes.
    """
    source = cell.extra[0]
    if source.kind != "model" or source.stored or cell.model.stored:
        return
    shapes = [tuple(_admitted(a, cell, context).logits.shape[1:]) for a in (source, cell.model)]
    if shapes[0] != shapes[1]:
        remedy = "name a source that was trained on the same classes"
        expected = f"those of {cell.model.label}, {shapes[1]}"
        raise ModelError(must(f"the outputs per image of the source {source.label}", expected, shapes[0], remedy))


def _admitted(model: Artifact, cell: Cell, context: Context) -> Admitted:
    """A model of the run, tried out at the cell's width; an error names the model.

    Raises:
        ModelError: It cannot be asked.
    """
    import torch

    from robench.admission import admit
    from robench.inference import untouched
    from robench.workshop import load as load_artifact
    from robench.workshop import load_model

    width = cell.settings.width
    data = load_artifact(cell.data, context)
    images = data.images(torch.tensor(_spread(len(data), width))).to(context.device)
    try:
        net = load_model(model, context).net
        with untouched(net):
            admitted = admit(net, images, width=width)
        _require_found(net, admitted, width)
        return admitted
    except ModelError as error:
        raise type(error)(f"{model.label}: {error}") from error


def _require_found(net: nn.Module, admitted: Admitted, width: int) -> None:
    """Refuse a model that needs more on the run's images, at its width, than its loader's own trial found.

    Raises:
        ModelError: Names the width that it takes, or what it does otherwise on these images.
    """
    if admitted.net is net:
        return
    most = getattr(admitted.net, "most", None)
    if most:
        raise ModelError(must("the model", f"able to take {width} images at once", f"at most {most}", f"add --width {most}"))
    expected = "plain float32 logits (N, K) for every image, also where a gradient is asked for"
    remedy = "return them so, leave the images as they are, and use operations that have a backward pass"
    raise ModelError(must("the model's outputs", expected, admitted.reason, remedy))
