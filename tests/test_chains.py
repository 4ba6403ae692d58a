"""Chains of conditions: read without eval, drawn as artifacts that are shared, refused where they make no sense."""

from __future__ import annotations

from dataclasses import replace

import pytest

from robench.errors import ConfigError
from robench.plan import Plan, Sources, expand
from robench.plan.chains import parse_chain
from robench.spec import Artifact, Cell, Ref
from robench.suite import parse_suite
from robench.zoo.entries import ZOO

NAMES = ("digits-standard", "digits-pgd-at", "digits-trap")
SOURCES = Sources(
    "digits",
    "digits",
    {"train": "hash-of-train", "test": "hash-of-test"},
    {name: Artifact("model", Ref.of("zoo", name=name), f"1|{name}", label=name) for name in NAMES},
)
WHOLE = "scarcity(fraction=0.1) | prune(0.7) | corruption(gaussian_noise, 3) | attack(robench-standard)"


def plan(*chains: str, more: str = "", models: tuple[str, ...] = ("digits-standard",)) -> Plan:
    lines = "\n".join(f"  - {{chain: {chain!r}}}" for chain in chains)
    text = f"name: x\nlimit: 20\nmodels: [{', '.join(models)}]\nthreats: [linf(0.1)]\n{more}\nchains:\n{lines}\n"
    return expand(parse_suite(text), SOURCES)


def conditioned(found: Plan) -> list[Cell]:
    return [cell for cell in found.cells if cell.condition]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prune(0.7)", (Ref.of("prune", amount=0.7),)),
        ("prune", (Ref("prune"),)),
        (" int8 |  prune( amount = 0.5 ) ", (Ref("int8"), Ref.of("prune", amount=0.5))),
        ("corruption(fog,3)", (Ref.of("corruption", name="fog", severity=3),)),
        ("corruption('fog', severity=3)", (Ref.of("corruption", name="fog", severity=3),)),
        ("attack(robench-standard)", (Ref.of("attack", attack="robench-standard"),)),
        ("attack(pgd(steps=4, loss='margin'), linf(8/255))",
         (Ref.of("attack", attack="pgd(steps=4, loss='margin')", threat="linf(8/255)"),)),
        ("attack", (Ref("attack"),)),
        ("bit_depth(bits=3) | attack(threat=l2(1))", (Ref.of("bit_depth", bits=3), Ref.of("attack", threat="l2(1)"))),
    ],
)  # fmt: skip
def test_steps_are_read_with_their_names(text, expected):
    assert parse_chain(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a step of a chain must be a known one"),
        ("prun(0.7)", "did you mean 'prune'"),
        ("prune(0.7", "name\\(argument, ...\\)"),
        ("prune(0.7, amount=0.5)", "each once"),
        ("int8(1, 2, 3, 4, 5, 6)", "as many as it takes"),
        ("corruption(fog, 3, 4)", "as many as it takes"),
        ("prune(lambda: 1)", "a literal or a name"),
        ("attack(fgsm) | prune(0.5)", "at its end"),
        ("prune(__import__('os').system('true') or 1)", "a literal or a name"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_chain(text)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("corruption(fog)", "add what is missing"),
        ("corruption(gaussian_noise, 6)", "1, 2, 3, 4 or 5"),
        ("corruption(no_such, 2)", "a known one"),
        ("corruption(gaussian_noise, 1) | corruption(contrast, 1)", "one change of the images"),
        ("prune(0.5) | scarcity(0.5)", "the first step"),
        ("scarcity(frction=0.5)", "did you mean 'fraction'"),
        ("prune(amuont=0.5)", "did you mean 'amount'"),
        ("attack(fgsm, linf(8))", "did you mean 8/255"),
    ],
)
def test_what_makes_no_sense_is_refused(chain, message):
    with pytest.raises(ConfigError, match=message):
        plan(chain)


def test_a_model_of_unknown_training_cannot_be_made_scarce():
    with pytest.raises(ConfigError, match="one whose training is known"):
        plan("scarcity(0.5)", models=("digits-trap",))


def test_the_whole_chain_is_one_model_on_one_set_of_images():
    found = conditioned(plan(WHOLE))
    text = "scarcity(fraction=0.1) | prune(amount=0.7) | corruption(name='gaussian_noise', severity=3)"
    assert {cell.condition for cell in found} == {text}
    assert [cell.scenario.name for cell in found] == ["clean", "disagreement", "evasion", "evasion", "sentinel"]
    assert len({cell.model.digest for cell in found}) == len({cell.data.digest for cell in found}) == 1
    model, data = found[0].model, found[0].data
    parent = model.inputs[0]
    assert (model.builder.name, parent.builder.name, data.builder.name) == ("compressed", "trained", "severity")
    entry, made, sample = ZOO["digits-standard"], parent.builder.kwargs, parent.inputs[0].builder
    assert (sample.kwargs["fraction"], made["steps"], made["arch"], made["recipe"]) == (
        0.1,
        entry.steps,
        str(entry.arch),
        "standard",
    )
    assert {a.label for cell in found if cell.scenario.name == "evasion" for a in cell.extra} == {"digits-standard"}


def test_chains_share_what_they_have_in_common():
    one, both = (
        plan(WHOLE),
        plan(WHOLE, "scarcity(fraction=0.1) | prune(0.7)", "scarcity(0.1) | corruption(gaussian_noise, 1)"),
    )

    def built(found: Plan, name: str) -> int:
        return found.counts().get(f"build {name}", 0)

    assert built(one, "trained") == built(both, "trained") == 1
    assert built(one, "corrupted") == built(both, "corrupted") == 1


def test_a_chain_of_one_step_is_the_cell_of_the_section():
    section = plan("prune(0.7)", more="compression: {models: [digits-standard], arms: [prune(amount=0.7)]}")
    assert [c.scenario.name for c in conditioned(section)].count("clean") == 1


def test_severities_share_one_prediction_of_all_five():
    found = plan(
        "corruption(gaussian_noise, 1)", "corruption(gaussian_noise, 5)", more="corruption: {names: [gaussian_noise]}"
    )
    of_images = [a for level in found.levels for a in level if a.builder.name == "predictions"]
    assert len(of_images) == 3
    parts = [c.extra[0] for c in conditioned(found)]
    assert {p.builder.kwargs["index"] for p in parts} == {0, 4}
    assert {p.inputs[0].digest for p in parts} < {a.digest for a in of_images}


def test_chains_of_models_that_are_not_in_the_run_are_left_out():
    text = "name: x\nmodels: [digits-standard]\nchains: [{chain: prune(0.5), models: [digits-pgd-at]}]"
    assert {c.model.label for c in conditioned(expand(parse_suite(text), SOURCES))} == {"digits-pgd-at"}


def test_a_compressed_model_of_a_chain_is_held_against_the_same_chain_without_the_compression():
    found = plan("scarcity(0.5) | prune(0.7) | int8 | corruption(gaussian_noise, 3)", "bit_depth(bits=3)")
    (beside,) = [c for c in found.cells if c.scenario.name == "disagreement"]
    assert beside.scenario.kwargs["parent"] == "scarcity(fraction=0.5) | corruption(name='gaussian_noise', severity=3)"
    models = [p.inputs[0].inputs[0] for p in beside.extra]  # a severity's predictions are a part of those of all five
    assert [m.builder.name for m in models] == ["compressed", "trained"]
    assert models[0].inputs[0].inputs[0].digest == models[1].digest and beside.data.builder.name == "severity"
    behind = plan("prune(0.7) | bit_depth(bits=3)")
    assert not [c for c in behind.cells if c.scenario.name == "disagreement"]


def test_after_scarcity_a_compression_sees_only_the_scarce_images():
    steps = "scarcity(fraction=0.05) | prune(0.5) | finetune(steps=5)"
    found = conditioned(plan(steps, "scarcity(fraction=0.05) | int8", "prune(0.5) | finetune(steps=5)"))
    seen = {c.condition: c.model.inputs[1].builder for c in found}
    scarce = [builder for condition, builder in seen.items() if condition.startswith("scarcity")]
    assert len(scarce) == 2 and all(b.name == "sampled" and b.kwargs["fraction"] == 0.05 for b in scarce)
    assert seen["prune(amount=0.5) | finetune(steps=5)"].name == "images"


def test_a_defence_between_compressions_is_refused():
    with pytest.raises(ConfigError, match="next to one another"):
        plan("float | bit_depth(bits=1) | int8_weights")


def test_recipes_of_one_name_stay_apart():
    text = "name: x\nscarcity: {recipes: [pgd_at(steps=2), pgd_at(steps=7)], fractions: [0.5], steps: 3}"
    labels = {c.model.label for c in expand(parse_suite(text), SOURCES).cells}
    assert labels == {"trained-pgd_at(steps=2)", "trained-pgd_at(steps=7)"}
    one, other = (replace(SOURCES.models[n], label="same") for n in NAMES[:2])
    twice = replace(SOURCES, models={"same": one, "other": other})
    with pytest.raises(ConfigError, match="one per name, condition and seed"):
        expand(parse_suite("name: x\nmodels: [same]"), twice)
