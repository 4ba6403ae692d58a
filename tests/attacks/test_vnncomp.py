"""Networks whose verdicts others proved (VNN-COMP 2021): no proof may be contradicted, what is known to break must break.

Every instance is untargeted in linf: any other class than the label counts.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import robench
from robench.models.exported import load_exported
from robench.spec import ThreatModel

pytestmark = pytest.mark.shared

LEAST = {"easy": 1.0, "medium": 1.0, "hard": 0.0}
"""Share of the instances known to be breakable that ``robench-standard`` must break."""


def instances(folder: Path) -> list[dict[str, str]]:
    with (folder / "verdicts.csv").open() as handle:
        return list(csv.DictReader(handle))


def programs(folder: Path) -> dict[str, nn.Module]:
    """The networks by name; verivital's two come as ONNX only, and are the same but for their pooling."""
    pools = {"Convnet_avgpool": nn.AvgPool2d(4), "Convnet_maxpool": nn.MaxPool2d(4)}
    found: dict[str, nn.Module] = {path.stem: load_exported(path) for path in sorted(folder.glob("*.pt2"))}
    return found or {path.stem: convolutional(path, pools[path.stem]) for path in sorted(folder.glob("*.onnx"))}


def convolutional(path: Path, pool: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 32, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(1152, 10)).eval()
    stored = initializers(path)
    for layer, name in ((net[0], "conv1.0"), (net[4], "out")):
        layer.load_state_dict({kind: stored[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return net


def initializers(path: Path) -> dict[str, torch.Tensor]:
    """The float32 tensors of an ONNX file: graph is field 7 of the model, its tensors are field 5 of the graph."""
    found = {}
    for number, body in fields(dict(fields(path.read_bytes()))[7]):
        if number == 5:
            parts = list(fields(body))
            shape = [value for key, value in parts if key == 1]
            values = np.frombuffer(dict(parts)[9], dtype="<f4").reshape(shape)
            found[dict(parts)[8].decode()] = torch.from_numpy(values.copy())
    return found


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protocol buffer's fields."""
    place = 0

    def integer() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte, place = message[place], place + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while place < len(message):
        tag = integer()
        if tag & 7 == 0:
            yield tag >> 3, integer()
            continue
        size = {1: 8, 5: 4}.get(tag & 7) or integer()
        yield tag >> 3, message[place : place + size]
        place += size


def broken(folder: Path, rows: list[dict[str, str]], protocol: str) -> dict[int, bool]:
    """Whether the protocol breaks each instance; those of one network and one radius are attacked together."""
    cases, nets, found = np.load(folder / "cases.npz"), programs(folder), {}
    place = {int(i): k for k, i in enumerate(cases["id"])}
    groups: dict[tuple[str, float], list[int]] = {}
    for row in rows:
        groups.setdefault((Path(row["onnx"]).stem, float(cases["eps"][place[int(row["id"])]])), []).append(int(row["id"]))
    for (net, eps), ids in groups.items():
        at = [place[i] for i in ids]
        x, y = torch.from_numpy(cases["x_u8"][at]).float() / 255, torch.from_numpy(cases["label"][at]).long()
        attacked = robench.attack(nets[net], x, y, threat=str(ThreatModel.parse(f"linf({eps!r})")), protocol=protocol)
        assert set(attacked.rows["status"]) == {"ok"}
        found.update(zip(ids, (~attacked.robust).tolist(), strict=True))
    return found


def require_true(folder: Path, rows: list[dict[str, str]], found: dict[int, bool]) -> None:
    """Count by verdict and difficulty, and hold the counts against the proofs."""
    total = Counter((row["verdict"], row["difficulty"]) for row in rows)
    hits = Counter((row["verdict"], row["difficulty"]) for row in rows if found[int(row["id"])])
    print(folder.name, {" ".join(key).strip(): f"{hits[key]}/{count}" for key, count in sorted(total.items())})
    wrong = [row["id"] for row in rows if row["verdict"] == "unsat" and found[int(row["id"])]]
    assert not wrong, f"proved robust, reported broken: {wrong}"
    for level, share in LEAST.items():
        missed = [r["id"] for r in rows if (r["verdict"], r["difficulty"]) == ("sat", level) and not found[int(r["id"])]]
        assert len(missed) <= (1 - share) * total["sat", level], f"{level}: known to break, missed: {missed}"


def test_every_instance_is_untargeted(shared_data: Path) -> None:
    for folder in sorted((shared_data / "vnncomp").iterdir()):
        rows, cases = instances(folder), np.load(folder / "cases.npz")
        assert {row["kind"] for row in rows} == {"argmax"} and (cases["target"] == -1).all()
        assert {int(row["id"]) for row in rows} == set(cases["id"].tolist())


def test_no_proof_is_contradicted_and_what_breaks_easily_is_broken(shared_data: Path) -> None:
    """The two networks of the smallest benchmarks' first halves: seconds; the slow test looks at all."""
    folder = shared_data / "vnncomp" / "2021_mnistfc"
    rows = [row for row in instances(folder) if row["onnx"] == "mnist-net_256x2.onnx" and row["verdict"] != "unknown"]
    require_true(folder, rows, broken(folder, rows, "robench-standard"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2021_mnistfc", "2021_oval21", "2021_verivital"])
def test_all_proofs_hold_and_all_easy_and_medium_instances_are_broken(shared_data: Path, name: str) -> None:
    folder = shared_data / "vnncomp" / name
    rows = [row for row in instances(folder) if row["verdict"] != "unknown"]
    require_true(folder, rows, broken(folder, rows, "robench-standard"))


@pytest.mark.slow
def test_robench_deep_on_the_hard_instances(shared_data: Path) -> None:
    folder = shared_data / "vnncomp" / "2021_mnistfc"
    rows = [row for row in instances(folder) if row["difficulty"] in ("medium", "hard")]
    require_true(folder, rows, broken(folder, rows, "robench-deep"))
