"""Temperature scaling: fitted beside the test images, measured on clean, corrupted and adversarial ones."""

from __future__ import annotations

from robench.errors import ConfigError, must
from robench.plan.corruption import names_of, severity
from robench.plan.draft import Draft
from robench.plan.ood import attacked
from robench.plan.plain import measured
from robench.spec import Artifact, Ref

FITTED_ON = ("validation", "train")


def section(draft: Draft) -> None:
    """Every model of the suite, its temperature fitted on the section's split."""
    plan = draft.suite.calibration
    if not plan.split:
        return
    split = _split(draft, plan.split)
    if not split:
        return
    named = {f"{name}({plan.severity})": severity(draft, name, plan.severity) for name in names_of(draft, plan.corruptions)}
    for model in measured(draft):
        fit = draft.predictions(model, draft.images(split, plan.limit))
        seen: dict[str, Artifact] = {"clean": draft.predictions(model, draft.test())}
        seen |= {name: draft.predictions(model, data) for name, data in named.items()}
        if plan.attack:
            with draft.optional("confidence on adversarial images"):
                hit = attacked(draft, model, plan.attack, plan.threat)
                seen[f"{Ref.parse(plan.attack).name} {hit.builder.kwargs['threat']}"] = hit
        draft.add(Ref.of("calibration", split=split, sources=tuple(seen)), model, extra=(fit, *seen.values()))


def _split(draft: Draft, wanted: str) -> str:
    """The split to fit on; empty where the data have none but the test split.

    Raises:
        ConfigError: The test split, or an unknown one.
    """
    if wanted not in FITTED_ON:
        remedy = "what is fitted on test images says nothing about them"
        raise ConfigError(must("the split that a temperature is fitted on", " or ".join(FITTED_ON), wanted, remedy))
    known = draft.sources.splits
    if wanted in known:
        return wanted
    if "train" in known:
        draft.note(f"temperature fitted on {wanted} images: there are none; training images are taken, and it says so")
        return "train"
    draft.note("temperature scaling: the data set has neither validation nor training images to fit on")
    return ""
