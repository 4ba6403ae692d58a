"""The plan of corrupted images: groups, sizes, what does not apply and is said so, and the user's published folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robench.corrupt.perturbations import PERTURBATIONS
from robench.corrupt.tables import BENCHMARK
from robench.errors import ConfigError, DataError
from robench.plan import Plan, Sources, expand
from robench.spec import Artifact, Ref
from robench.suite import parse_suite

MODELS = {name: Artifact("model", Ref.of("zoo", name=name), f"1|{name}", label=name) for name in ("a-model", "b-model")}
COLOUR = Sources("cifar10(root='x')", "cifar10", {"test": "hash"}, MODELS, shape=(3, 32, 32))
DIGITS = Sources("digits", "digits", {"test": "hash"}, MODELS, shape=(1, 32, 32))


def plan(corruption: str, sources: Sources = COLOUR, more: str = "", **options) -> Plan:
    suite = parse_suite(f"name: t\nmodels: [a-model]\ncorruption: {corruption}\n{more}")
    return expand(suite, sources, **options)


def corruptions(found: Plan) -> list[dict]:
    return [cell.scenario.kwargs for cell in found.cells if cell.scenario.name == "corruption"]


def test_a_group_stands_for_its_names_and_the_size_for_the_table() -> None:
    found = plan("{names: [benchmark, extra]}")
    told = corruptions(found)
    assert [t["corruption"] for t in told][:15] == list(BENCHMARK) and len(told) == 19
    assert {t["table"] for t in told} == {"cifar-v1"}
    assert {t["source"] for t in told} == {"robench-C (regenerated, cifar-v1)"}
    assert {t["family"] for t in told} == {"noise", "blur", "weather", "digital"}
    assert found.notes == ()


@pytest.mark.parametrize(
    ("side", "table"),
    [(224, "imagenet-v1"), (64, "tiny-v1"), (48, "interpolated(cifar-v1,tiny-v1,48)"), (28, "nearest(cifar-v1,28)")],
)
def test_other_sizes_say_what_they_are(side: int, table: str) -> None:
    told = corruptions(plan("{names: [fog]}", replace(COLOUR, shape=(3, side, side))))
    assert told[0]["table"] == table and told[0]["source"] == f"robench-C (regenerated, {table})"


def test_what_does_not_apply_to_one_channel_is_left_out_and_said() -> None:
    found = plan("{names: [benchmark, extra, rotation]}", DIGITS)
    names = {t["corruption"] for t in corruptions(found)}
    assert "saturate" not in names and {"fog", "spatter", "rotation"} <= names
    assert {t["table"] for t in corruptions(found)} == {"digits-v2"}
    assert "corruption saturate: it needs images of 3 channels, these are of 1" in found.notes
    missing = "corruption jpeg_compression: the severity table digits-v2 has no levels for it"
    assert missing in found.notes and len(found.notes) == 3


def test_saturate_by_name_is_left_out_too_and_refused_in_a_chain() -> None:
    found = plan("{names: [saturate], table: cifar-v1}", DIGITS)
    assert corruptions(found) == [] and len(found.notes) == 1
    with pytest.raises(
        ConfigError, match=r"images for saturate must be of 3 channels, got 'of 1'; leave it out of the chain"
    ):
        plan("{table: cifar-v1}", DIGITS, "chains: [{chain: 'corruption(saturate, 3)'}]")


def test_a_corruption_by_name_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="a corruption of the severity table must be a known one, got 'jpeg'"):
        plan("{names: [jpeg]}", DIGITS)


def test_sequences_are_made_once_for_all_models() -> None:
    found = plan("{sequences: [all]}", more="")
    cells = [c for c in found.cells if c.scenario.name == "flips"]
    assert [c.scenario.kwargs["perturbation"] for c in cells] == list(PERTURBATIONS)
    assert found.counts()["build sequences"] == found.counts()["build predictions"] - 1 == 10
    with pytest.raises(ConfigError, match="a perturbation sequence must be a known one, got 'fog'"):
        plan("{sequences: [fog]}")


def test_the_reference_is_a_model_of_the_run() -> None:
    assert corruptions(plan("{names: [fog], reference: b-model}"))[0]["reference"] == "b-model"
    with pytest.raises(ConfigError, match="did you mean 'b-model'"):
        plan("{names: [fog], reference: b-modl}")


def test_published_folders_are_named_so_and_are_other_cells(tmp_path: Path) -> None:
    home = tmp_path / "CIFAR-10-C"
    home.mkdir()
    np.save(home / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(home / "labels.npy", np.zeros(10, np.uint8))
    found = plan(f"{{names: [fog], source: \"published(root='{home}')\"}}")
    assert corruptions(found)[0]["source"] == corruptions(found)[0]["table"] == "published(CIFAR-10-C)"
    built = next(c for c in found.cells if c.scenario.name == "corruption").extra[0].inputs[1]
    assert built.builder.name == "published" and not built.stored
    assert {c.digest for c in found.cells} != {c.digest for c in plan("{names: [fog]}").cells}
    with pytest.raises(DataError, match=r"the published corruptions must be a folder with snow\.npy"):
        plan(f"{{names: [snow], source: \"published(root='{home}')\"}}")
    for wrong in ("downloaded", "published", "published(path='x')"):
        with pytest.raises(ConfigError, match="the corruptions' source must be regenerated or published"):
            plan(f'{{names: [fog], source: "{wrong}"}}')
