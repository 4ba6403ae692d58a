"""Models as they come: of the zoo, of the user's files, behind a defence."""

from __future__ import annotations

from robench import catalog
from robench.registry import facts
from robench.spec import Artifact, Context
from robench.workshop import Model, load_model


@facts(version=1, kind="model")
def zoo(artifact: Artifact, context: Context, *, name: str = "") -> Model:
    """A model of the embedded zoo; one that was trained on a part of its data tells its accuracy there."""
    from robench import zoo as embedded

    entry = embedded.ZOO[name]
    seen = {"train_accuracy": entry.train_accuracy, "train_n": entry.train_n} if entry.fraction < 1 else {}
    return Model(embedded.load(name).to(context.device), seen)


@facts(version=2, kind="model")
def file(
    artifact: Artifact,
    context: Context,
    *,
    sha256: str = "",
    arch: str = "",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    low: float = 0.0,
    high: float = 1.0,
    num_classes: int = 0,
    classes: int = 10,
    shape: tuple[int, ...] = (),
    weights: str = "",
    attributes: str = "",
    code: str = "",
) -> Model:
    """A user's model file or factory, found by the hash of its content, for images and classes of the run's data.

    Raises:
        ModelError: The file, or what the factory gives, is no longer what the run was planned with.
    """
    from robench.models.load import load_model as read

    path = dict(context.sources).get(sha256, artifact.label)
    net, spec = read(
        path, arch=arch or None, mean=mean, std=std, input_range=(low, high), trust=context.trust,
        num_classes=num_classes or classes, exact=bool(num_classes), shape=(shape[0], shape[1], shape[2]) if shape else None,
        **({"weights": weights} if weights else {"sha256": sha256}),
    )  # fmt: skip
    return Model(net.to(context.device), {}, notes=spec.notes)


@facts(version=1, kind="model")
def defended(artifact: Artifact, context: Context, *, defense: str = "") -> Model:
    """The first input behind an inference-time defence."""
    parent = load_model(artifact.inputs[0], context)
    ref = catalog.DEFENSES.resolve(defense)
    net = catalog.DEFENSES[ref.name].load()(parent.net, **ref.kwargs)
    return Model(net.eval(), parent.made, simulated=parent.simulated, task=parent.task)
