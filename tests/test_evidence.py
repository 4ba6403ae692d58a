"""Kept images: in the ball as 8-bit ones, judged again without attack code, and every change on disk is told."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load as read_tensors
from safetensors.torch import save, save_file

from robench import evidence, load
from robench.api import run
from robench.attacks import _rand
from robench.children import isolated
from robench.cli import main
from robench.errors import StoreError
from robench.evidence import as_pixels, breaks_in_8bit, eight_bit, shown, verify
from robench.judge import judge
from robench.lineage import cell_of, lineage
from robench.metrics.robust import robust_accuracy, robust_accuracy_8bit
from robench.metrics.table import tidy
from robench.ops.norms import Ball, distance
from robench.ops.random import Draws
from robench.scenarios.objects import open_cell
from robench.spec import Artifact, Cell, Context, Ref, Settings, ThreatModel, sha256
from robench.store import Store, _sealed
from robench.suite import parse_suite
from robench.verification import verify_run

SUITE = parse_suite(
    """
name: tiny
limit: 8
models: [digits-mlp]
threats: [linf(0.1), l2(2.0)]
attacks: [pgd(steps=4)]
"""
)
HERE = {"workers": 1, "device": "cpu", "settings": Settings(width=16)}


def robench(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def here(monkeypatch) -> None:
    """``robench verify`` judges in this process; others of the tests leave it its own, which starts seconds later."""
    from robench import verification

    within = partial(verification.verify_run, apart=lambda function, argument, **told: function(argument))
    monkeypatch.setattr(verification, "verify_run", within)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with its images: one model, 8 images, two norms, a plain attack, and a protocol in one of them."""
    folder = tmp_path_factory.mktemp("evidence") / "run"
    suite = SUITE.model_copy(update={"threats": ["linf(0.1)"], "attacks": ["robench-standard"]})
    run(suite, out=folder, save_adversarials=True, **HERE)
    protocol = Store(folder).read_run()["cells"]
    run(SUITE, out=folder, save_adversarials=True, **HERE)
    store = Store(folder)
    header = store.read_run()
    store.write_run({**header, "cells": {**header["cells"], **protocol}})
    return folder


@pytest.fixture
def copy(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "run"))


def header_of(folder: Path, attack: str = "pgd(steps=4)", threat: str = "linf(0.1)", model: str = "digits-mlp") -> Path:
    """The header of one attack's images."""
    for path in Store(folder).image_headers().values():
        told = json.loads(path.read_text())
        if (told["attack"], told["threat"], told["model"]) == (attack, threat, model):
            return path
    raise LookupError(attack)


def images_of(header: Path) -> Path:
    return header.with_name(json.loads(header.read_text())["file"])


def random_pairs(threat: ThreatModel, *, n: int = 40, grid: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean images, on the 8-bit grid or not, and points of their balls, half of them on the sphere."""
    draws = Draws(5, torch.arange(n))
    x = draws.uniform("x", (3, 6, 6))
    x = (x * 255).round() / 255 if grid else x
    ball = Ball(x, threat)
    far = ball.project(x + (draws.uniform("far", (3, 6, 6)) - 0.5) * 4)
    return x, torch.where(torch.arange(n)[:, None, None, None] % 2 == 0, far, ball.random(draws, "inside"))


TEXTS = ("linf(8/255)", "linf(0.1)", "l2(0.5)", "l1(3)", "linf(inf)", "l2(inf)")
IN_THE_BALL = [(text, grid) for text in TEXTS for grid in (True, False)]
"""Threats, and whether x lies on the 8-bit grid; in l0 no 8-bit image differs from one off the grid in few pixels."""


@pytest.mark.parametrize(("text", "grid"), [*IN_THE_BALL, ("l0(9)", True)])
def test_8bit_images_lie_in_the_ball(text, grid):
    threat = ThreatModel.parse(text)
    x, x_adv = random_pairs(threat, grid=grid)
    small = eight_bit(x, x_adv, threat)
    assert small.dtype == torch.uint8 and small.shape == x.shape
    assert bool(Ball(x, threat).contains(as_pixels(small)).all())


def test_8bit_images_of_linf_are_the_nearest_in_the_integer_ball():
    """Slow twin: of the 256 values those within 8 of the clean one; the nearest to the adversarial one wins."""
    x, x_adv = random_pairs(ThreatModel.parse("linf(8/255)"), n=6)
    small = eight_bit(x, x_adv, ThreatModel.parse("linf(8/255)"))
    for clean, point, got in zip(x.flatten().tolist(), x_adv.flatten().tolist(), small.flatten().tolist(), strict=True):
        middle = round(clean * 255)
        allowed = [k for k in range(256) if abs(k - middle) <= 8]
        assert abs(got / 255 - point) <= min(abs(k / 255 - point) for k in allowed) + 1e-9


def test_8bit_images_of_l2_lose_less_than_rounding_towards_x():
    threat = ThreatModel.parse("l2(0.5)")
    x, x_adv = random_pairs(threat, n=30)
    full = distance(x, x_adv, "l2")
    scaled = x_adv.double() * 255
    towards = torch.where(x_adv >= x, (scaled + 1e-5).floor(), (scaled - 1e-5).ceil()) / 255
    mine = distance(x, as_pixels(eight_bit(x, x_adv, threat)), "l2")
    far = full > 0.49
    assert bool((mine[far] > distance(x, towards.float(), "l2")[far]).all())
    assert float(mine[far].min()) > 0.47


def test_an_8bit_image_is_its_own_8bit_image():
    threat = ThreatModel.parse("l2(0.5)")
    x, _ = random_pairs(threat)
    assert torch.equal(as_pixels(eight_bit(x, x, threat)), x)
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for text in ("linf(1/255)", "l2(0.5)", "l0(3)"):
        assert torch.equal(eight_bit(as_pixels(levels), as_pixels(levels), ThreatModel.parse(text)), levels)


def test_a_ball_without_8bit_images_breaks_nothing_in_8bit():
    """x lies between two values and eps does not reach either of them."""
    x = torch.full((2, 1, 2, 2), 10.5 / 255)
    threat = ThreatModel.parse("linf(0.0005)")
    always_wrong = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    torch.nn.init.zeros_(always_wrong[1].weight)
    with torch.no_grad():
        always_wrong[1].bias.copy_(torch.tensor([0.0, 1.0]))
    y, broken = torch.zeros(2, dtype=torch.int64), torch.tensor([True, True])
    told = {"threat": threat, "width": 16}
    assert not bool(Ball(x, threat).contains(as_pixels(eight_bit(x, x, threat))).any())
    assert breaks_in_8bit(always_wrong, x, y, x_adv=x, broken=broken, **told).tolist() == [False, False]
    wide = {**told, "threat": ThreatModel.parse("linf(0.01)")}
    assert breaks_in_8bit(always_wrong, x, y, x_adv=x, broken=~broken | broken, **wide).tolist() == [True, True]
    assert breaks_in_8bit(always_wrong, x, y, x_adv=x, broken=~broken, **wide).tolist() == [False, False]


def test_shown_images_are_what_the_judge_judged():
    threat = ThreatModel.parse("l2(0.5)")
    x, _ = random_pairs(threat, n=4)
    x_adv = (x + 0.5).clamp(0, 1)
    mistaken, projected = torch.tensor([True, False, False, True]), torch.tensor([True, True, False, False])
    found = shown(x, x_adv, threat, projected=projected, mistaken=mistaken)
    assert torch.equal(found[0], x[0]) and torch.equal(found[3], x[3]) and torch.equal(found[2], x_adv[2])
    assert torch.equal(found[1], Ball(x, threat).project(x_adv)[1])


def test_lineages_are_read_back():
    data = Artifact("data", Ref.of("images", source="cifar10(root='a b')", limit=None), "1|ab", label="cifar10")
    base = Artifact("model", Ref.of("file", mean=(0.1, 0.2), arch="resnet18(width=16)"), "2", label="net", stored=False)
    top = Artifact("model", Ref.of("trained", lr=3e-3), "3|x", (base, data), label="top", stored=True)
    scenario = Ref.of("evasion", attack="pgd(loss='dlr', steps=4)", threat="linf(8/255)")
    cell = Cell(scenario, "4|pgd", top, data, "prune(amount=0.5)", (base,), 7, (1, 3), Settings(width=32))
    again = cell_of(json.loads(json.dumps(lineage(cell))))
    assert again == cell and again.digest == cell.digest


@pytest.mark.slow
def test_rows_count_8bit_images_by_a_second_judgement(kept):
    """Each row's broken_8bit against the judge on an image rounded here."""
    from robench import zoo
    from robench.workshop import read_split

    rows = load(kept)["evasion"]
    assert set(rows["threat"]) == {"linf(0.1)", "l2(2.0)"}
    assert not (rows["broken_8bit"] & ~rows["broken"]).any() and rows["broken_8bit"].any()
    assert (rows["broken"] == (rows["score_adv"] == 0)).all()
    data = read_split("digits", "test")
    for header in map(json.loads, (p.read_text() for p in Store(kept).image_headers().values())):
        mine = rows[(rows["cell"] == header["digest"]) & rows["broken"]]
        tensors = read_tensors((kept / "evidence" / header["file"]).read_bytes())
        assert tensors["ids"].tolist() == mine["sample"].tolist()
        assert tensors["ids_8bit"].tolist() == mine.loc[mine["broken_8bit"], "sample"].tolist()
        places = [data.ids.tolist().index(i) for i in tensors["ids_8bit"].tolist()]
        x, y = data.images(torch.tensor(places, dtype=torch.int64)), data.labels[places]
        threat = ThreatModel.parse(header["threat"])
        pixels = tensors["images_8bit"].float() / 255
        order = math.inf if threat.norm == "linf" else 2
        gap = np.linalg.norm((pixels.double() - x.double()).flatten(1).numpy(), order, axis=1)
        assert (gap <= threat.eps + 1e-6).all()
        assert bool(judge(zoo.load(header["model"]), x, y, x_adv=pixels, threat=threat).broken().all())


def test_headers_tell_hash_stage_seed_threat_and_lineage(kept):
    plain = json.loads(header_of(kept).read_text())
    protocol = json.loads(header_of(kept, "robench-standard", model="digits-mlp").read_text())
    tensors = read_tensors((kept / "evidence" / plain["file"]).read_bytes())
    first = plain["samples"][0]
    assert first["sha256"] == sha256(tensors["images"][0].numpy().tobytes())
    assert first["sample"] == int(tensors["ids"][0])
    assert plain["content"] == sha256((kept / "evidence" / plain["file"]).read_bytes())
    assert plain["seed"] == 0 and {s["stage"] for s in plain["samples"]} <= {"pgd(steps=4)"}
    assert {s["stage"] for s in protocol["samples"]} & {"sieve", "clean"}
    assert plain["lineage"]["model"]["builder"] == "zoo(name='digits-mlp')"
    assert {"torch", "robench"} <= set(plain["versions"])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_verify_gives_the_same_verdicts_at_any_batch_size(kept, batch):
    found = verify(kept, device="cpu", batch_size=batch)
    rows = load(kept)["evasion"]
    assert found.differences == () and found.without == 0
    assert (found.cells, found.images, found.images_8bit) == (3, rows["broken"].sum(), rows["broken_8bit"].sum())


@pytest.mark.gpu
def test_verify_on_another_device_gives_the_same_verdicts(kept):
    assert verify(kept, device="cuda").differences == ()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over a trained model, compressed copies and one behind a defence; one attack breaks next to nothing."""
    folder = tmp_path_factory.mktemp("made") / "run"
    suite = parse_suite(
        """
name: made
limit: 6
threats: [linf(0.1), linf(0.0001)]
attacks: [fgsm]
defenses: [{model: digits-mlp, defense: bit_depth}]
compression: {models: [digits-mlp], arms: [prune(amount=0.3), int8], threats: [linf(0.1)], attacks: [fgsm]}
"""
    )
    trained = "trained(arch='mlp', recipe='standard', steps=3)"
    run(suite, models=["digits-mlp", trained], out=folder, save_adversarials=True, **HERE)
    return folder


JUDGED = """[
    __import__("robench.evidence").evidence.replay(({run!r}, {{"batch_size": 5, "device": "cpu"}})).differences,
    [m for m in __import__("sys").modules if m.startswith("robench.attacks.") or m.partition(".")[0] in ("art", "attacks")],
    "robench.judge" in __import__("sys").modules,
]"""
"""Differences, modules of attacks, and whether the judge is there."""


@pytest.mark.slow
def test_verify_in_a_fresh_process_imports_no_attack(kept, made):
    """Zoo, trained, compressed and defended models, a protocol and plain attacks; in the child that ``verify_run`` takes."""
    for run_directory in (kept, made):
        assert isolated(eval, JUDGED.format(run=str(run_directory)), fresh=True) == [(), [], True]


def test_a_fresh_child_has_imported_nothing_that_its_function_does_not_need():
    """A fork of the launcher has the attacks in it; the judging of kept images must not."""
    found = isolated(eval, "sorted(m for m in __import__('sys').modules if m.startswith(('robench.', 'torch')))", fresh=True)
    assert "robench.children" in found and not any(m.startswith(("robench.attacks.", "torch")) for m in found)
    attacks = "[m for _ in [__import__('robench.evidence')] for m in __import__('sys').modules if '.attacks.' in m]"
    assert isolated(eval, attacks, fresh=True) == []


def test_kept_images_are_judged_in_a_fresh_process(kept):
    """The rows are computed again in a child that may hold attack code, the images are judged in one that does not."""
    calls = []

    def apart(function, argument, **told):
        calls.append((function.__name__, told.get("fresh", False)))
        return function(argument)

    assert verify_run(kept, device="cpu", apart=apart).images > 0
    assert ("replay", True) in calls and ("recheck", False) in calls


def test_conditions_and_attacks_without_finds_are_verified(made):
    found = verify(made, device="cpu", batch_size=1)
    headers = [json.loads(path.read_text()) for path in Store(made).image_headers().values()]
    assert found.differences == () and found.cells == len(headers)
    assert {h["condition"] for h in headers} >= {"", "bit_depth", "int8", "prune(amount=0.3)"}
    assert not all(h["samples"] for h in headers)


def test_a_trained_model_that_is_gone_is_named_and_not_trained_again(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "run"))
    shutil.rmtree(folder / "artifacts")
    differences = verify(folder, device="cpu").differences
    assert differences and all("not in the run directory any more" in line for line in differences)
    assert not (folder / "artifacts").exists()


def _tamper(file: Path, change) -> None:
    tensors = read_tensors(file.read_bytes())
    change(tensors)
    file.write_bytes(save(tensors))


def test_one_changed_pixel_is_named(copy, here):
    header = header_of(copy)

    def change(tensors):
        tensors["images"][1, 0, 3, 3] += 0.01

    _tamper(images_of(header), change)
    sample = json.loads(header.read_text())["samples"][1]["sample"]
    told = robench("verify", copy, "--device", "cpu", code=1).output
    assert f"sample {sample}: the float32 image was changed" in told
    assert told.count("image was changed") == 1


def test_one_changed_8bit_pixel_is_named(copy):
    header = header_of(copy)
    images = images_of(header)
    sample = int(read_tensors(images.read_bytes())["ids_8bit"][0])
    _tamper(images, lambda tensors: tensors["images_8bit"][0, 0, 0, 0].add_(1))
    (line,) = verify(copy, device="cpu").differences
    assert f"sample {sample}: the 8-bit image was changed" in line


def test_images_of_samples_that_the_header_does_not_name_are_told(copy):
    header = header_of(copy)

    def add(tensors):
        tensors["ids_8bit"] = torch.cat([tensors["ids_8bit"], torch.tensor([10**6])])
        tensors["images_8bit"] = torch.cat([tensors["images_8bit"], tensors["images_8bit"][:1]])

    forged(header, add)
    (line,) = verify(copy, device="cpu").differences
    assert "other bytes" in line


def test_images_of_another_shape_are_told(copy):
    def crop(tensors):
        for name in ("images", "images_8bit"):
            tensors[name] = tensors[name][..., 1:].contiguous()

    forged(header_of(copy), crop)
    (line,) = verify(copy, device="cpu").differences
    assert "not of the data's shape (1, 32, 32)" in line


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["samples"][0].update(sha256="0" * 64),
        lambda told: told.update(seed=1),
        lambda told: told.update(threat="linf(0.2)"),
        lambda told: told["lineage"].update(seed=1),
        lambda told: told.pop("samples"),
        lambda told: told.pop("header_sha256"),
    ],
)
def test_a_changed_header_is_named(copy, change):
    header = header_of(copy)
    told = json.loads(header.read_text())
    change(told)
    header.write_text(json.dumps(told))
    found = verify(copy, device="cpu")
    (line,) = found.differences
    assert header.name in line and "header was changed" in line and found.cells == 2


def test_a_header_under_another_name_is_named(copy):
    one, other = header_of(copy), header_of(copy, threat="l2(2.0)")
    one.write_text(other.read_text())
    (line,) = verify(copy, device="cpu").differences
    assert "another cell" in line


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_damaged_header_is_named(copy, text):
    header_of(copy).write_text(text)
    (line,) = verify(copy, device="cpu").differences
    assert "header was changed or is damaged" in line


def test_missing_files_are_named(copy, here):
    one, other = header_of(copy), header_of(copy, threat="l2(2.0)")
    images_of(one).unlink()
    images_of(other).unlink()
    other.unlink()
    told = robench("verify", copy, "--device", "cpu", code=1).output
    assert "cannot be read" in told and "header of its images is missing" in told


def test_a_truncated_file_is_named(copy):
    file = images_of(header_of(copy))
    file.write_bytes(file.read_bytes()[:-40])
    (line,) = verify(copy, device="cpu").differences
    assert file.name in line


def test_rows_that_say_otherwise_are_named(copy):
    """A sample whose row was turned robust, with a content hash that fits."""
    store = Store(copy)
    digest = header_of(copy).stem
    entry = store.finished()[digest]
    rows = store.frames([digest])["evasion"].drop(columns=["model", "dataset", "scenario", "condition", "seed", "cell"])
    sample = int(rows.loc[rows["broken"], "sample"].iloc[0])
    rows.loc[rows["sample"] == sample, ["broken", "broken_8bit"]] = False
    rows.to_parquet(entry.rows, index=False)
    (line,) = verify(copy, device="cpu").differences
    assert "unchanged since it was written" in line
    entry.rows.unlink()
    entry.rows.with_suffix(".json").unlink()
    store.put(entry.cell, rows, {})
    (line,) = verify(copy, device="cpu").differences
    assert f"samples {sample}: the rows and the images" in line


SPOILT = {
    "a newer schema": lambda h: h.update(schema=99),
    "no schema": lambda h: h.pop("schema"),
    "a scenario that is no reference": lambda h: h["lineage"].update(scenario="(("),
    "a lineage of nothing": lambda h: h.update(lineage=[]),
    "no sources": lambda h: h.pop("sources"),
    "sources that are no pairs": lambda h: h.update(sources=[1]),
    "samples that are none": lambda h: h.update(samples=[1]),
    "a sample of no number": lambda h: h["samples"][0].update(sample="x"),
    "a hold of nothing": lambda h: h.update(hold=0),
    "draws of no number": lambda h: h.update(draws="many"),
    "a file that is none": lambda h: h.update(file=None),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_evidence_that_cannot_be_read_is_a_difference(copy, kind):
    """Each with a hash of its own that fits; ``verify`` goes on with the other attacks."""
    header = header_of(copy)
    told = json.loads(header.read_text())
    SPOILT[kind](told)
    header.write_bytes(_sealed(told))
    cases, damaged = evidence._cases(Store(copy).image_headers())
    assert len(cases) == 2 and len(damaged) == 1 and damaged[0].startswith(header.name)


def test_rows_that_hold_a_sample_twice_are_a_difference(copy):
    store, digest = Store(copy), header_of(copy).stem
    entry = store.finished()[digest]
    rows = store.rows(entry)
    kept = {k: entry.header[k] for k in ("seconds", "device", "threads", "versions", "settings")}
    entry.rows.with_suffix(".json").unlink()
    store.put(entry.cell, pd.concat([rows, rows.iloc[:1]], ignore_index=True), kept)
    (line,) = verify(copy, device="cpu").differences
    assert line.endswith("column sample holds a sample twice")


def forged(header: Path, change) -> None:
    """Changed images whose hashes were all written anew: only the judge can tell."""
    told = json.loads(header.read_text())
    file = header.with_name(told["file"])
    _tamper(file, change)
    tensors = read_tensors(file.read_bytes())
    small = dict(zip(tensors["ids_8bit"].tolist(), tensors["images_8bit"], strict=True))
    for k, sample in enumerate(told["samples"]):
        sample["sha256"] = sha256(tensors["images"][k].numpy().tobytes())
        if sample["sha256_8bit"]:
            sample["sha256_8bit"] = sha256(small[sample["sample"]].numpy().tobytes())
    rest = {k: v for k, v in told.items() if k not in ("schema", "digest", "file", "content", "header_sha256")}
    Store(header.parent.parent).put_images(header.stem, file.read_bytes(), rest)


@pytest.mark.slow
def test_the_judge_finds_forged_images_outside_the_ball_and_harmless_ones(copy):
    from robench.workshop import read_split

    data = read_split("digits", "test")
    header = header_of(copy)
    samples = [s["sample"] for s in json.loads(header.read_text())["samples"]]
    robust = [s for s in samples if s not in _mistaken(copy)][:2]

    def change(tensors):
        for k, sample in enumerate(robust):
            clean = data.images(torch.tensor([data.ids.tolist().index(sample)]))[0]
            tensors["images"][samples.index(sample)] = clean if k else (clean + 0.3).clamp(0, 1)

    forged(header, change)
    found = verify(copy, device="cpu").differences
    assert any(f"sample {robust[0]}, float32: outside the ball or the box (distance 0.3" in line for line in found)
    assert any(f"sample {robust[1]}, float32: was broken, and is not now" in line for line in found)
    assert all(any(f"sample {sample}" in line for sample in robust) for line in found), found


def _mistaken(folder: Path) -> set[int]:
    rows = load(folder)["evasion"]
    return set(rows.loc[rows["score_clean"] == 0, "sample"])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_run_computes_nothing_and_a_lost_image_is_made_again(copy):
    again = run(SUITE, out=copy, save_adversarials=True, **HERE).summary
    assert again.computed == 0 and again.failures == ()
    header = header_of(copy)
    before = images_of(header).read_bytes()
    images_of(header).unlink()
    rows = {p.name for p in (copy / "cells").iterdir()}
    again = run(SUITE, out=copy, save_adversarials=True, **HERE).summary
    assert again.computed == 1 and again.failures == ()
    assert images_of(header).read_bytes() == before
    assert {p.name for p in (copy / "cells").iterdir()} == rows


def test_cells_finished_without_images_are_run_again_for_them_and_keep_their_rows(tmp_path, here):
    small = SUITE.model_copy(update={"threats": ["linf(0.1)"], "limit": 4})
    run(small, out=tmp_path, **HERE)
    with pytest.raises(StoreError, match="one with attacks, made with --save-adversarials"):
        verify(tmp_path, device="cpu")
    assert "--save-adversarials" in robench("verify", tmp_path, "--device", "cpu").output
    before = snapshot(tmp_path / "cells")
    summary = run(small, out=tmp_path, save_adversarials=True, **HERE).summary
    assert (summary.computed, summary.failures) == (1, ())
    assert snapshot(tmp_path / "cells") == before
    assert verify(tmp_path, device="cpu").differences == ()
    more = small.model_copy(update={"threats": ["linf(0.1)", "linf(0.05)"]})
    run(more, out=tmp_path, **HERE)
    found = verify(tmp_path, device="cpu")
    assert (found.cells, found.without, found.differences) == (1, 1, ())


def test_a_run_killed_between_images_and_rows_goes_on(copy):
    """Images are written before rows: without its rows the cell is run again, and the same files come out."""
    header = header_of(copy)
    before = header.read_text(), images_of(header).read_bytes()
    for path in (copy / "cells").glob(f"{header.stem}.*"):
        path.unlink()
    assert "no rows" in " ".join(verify(copy, device="cpu").differences)
    (copy / "evidence" / f".{header.name}.0123456789abcdef.robench-tmp").write_text("half")
    summary = run(SUITE, out=copy, save_adversarials=True, **HERE).summary
    assert summary.computed == 1
    assert (header.read_text(), images_of(header).read_bytes()) == before
    assert not list((copy / "evidence").glob(".*"))
    assert verify(copy, device="cpu").differences == ()


def test_images_of_a_cell_that_gives_other_numbers_are_refused(copy, monkeypatch):
    from robench.scenarios import evasion

    original = evasion.with_images

    def other(*args, **kwargs):
        x_adv, rows = original(*args, **kwargs)
        return x_adv, [{**row, "margin_adv": row["margin_adv"] + 1} for row in rows]

    monkeypatch.setattr(evasion, "with_images", other)
    images_of(header_of(copy)).unlink()
    ((_, error),) = run(SUITE, out=copy, save_adversarials=True, **HERE).summary.failures
    assert "of the same numbers as before" in error and "remove cells/" in error


def test_robust_accuracy_of_8bit_images_stands_in_the_table(kept):
    frames = load(kept)
    table = tidy(frames)
    worst = table[table["attack"].eq("worst")].pivot_table(index=["model", "threat"], columns="metric", values="value")
    assert (worst["robust_accuracy_8bit"] >= worst["robust_accuracy"]).all()
    rows = frames["evasion"].query("attack == 'pgd(steps=4)' and threat == 'linf(0.1)'")
    expected = 1 - (rows.groupby("sample")["broken_8bit"].max() | rows.groupby("sample")["score_clean"].min().eq(0)).mean()
    assert robust_accuracy_8bit(rows).value == pytest.approx(expected)
    assert robust_accuracy_8bit(rows.drop(columns="broken_8bit")).n == 0
    unknown = rows.assign(status="failed", broken_8bit=False)
    assert robust_accuracy_8bit(unknown).value == 0
    assert robust_accuracy(rows).value <= expected


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model file of the user's and its run."""
    folder = tmp_path_factory.mktemp("mine")
    code = folder / "mine.py"
    code.write_text(
        "import torch\n\n\ndef make():\n    torch.manual_seed(3)\n"
        "    return torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()\n"
    )
    suite = parse_suite("name: s\nlimit: 4\nthreats: [linf(0.1)]\nattacks: [fgsm]\n")
    run(suite, models=[f"{code}:make"], trust=True, save_adversarials=True, out=folder / "run", **HERE)
    return code, folder / "run"


@pytest.fixture
def mine(measured) -> Iterator[tuple[Path, Path]]:
    """The same, for a test that changes or moves the file."""
    text = measured[0].read_text()
    yield measured
    measured[0].write_text(text)


def test_a_user_s_code_is_verified_with_trust_only(mine):
    _, folder = mine
    assert "--trust" in robench("verify", folder, "--device", "cpu", code=2).output
    assert "no difference" in robench("verify", folder, "--device", "cpu", "--trust").output


@pytest.mark.slow
def test_a_user_s_code_that_moved_is_verified_where_it_is(mine, tmp_path):
    code, folder = mine
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    code.rename(moved / "mine.py")
    assert "mine.py" in robench("verify", folder, "--device", "cpu", "--trust", code=2).output
    robench("verify", folder, "--device", "cpu", "--trust", "--model", f"{moved / 'mine.py'}:make")


@pytest.mark.slow
def test_another_model_in_the_user_s_file_is_named(mine):
    code, folder = mine
    code.write_text(code.read_text().replace("manual_seed(3)", "manual_seed(4)"))
    told = robench("verify", folder, "--device", "cpu", "--trust", code=1).output
    assert "mine.py:make is not what the run measured" in told


def test_weights_files_and_changed_data_are_verified(tmp_path, here):
    from robench.models.weights import fresh
    from robench.sources import UserModel

    save_file(fresh("small_cnn", seed=1).state_dict(), str(tmp_path / "net.safetensors"))
    pixels = (Draws(1, torch.arange(12)).uniform("pixels", (32, 32)) * 255).to(torch.uint8).numpy()
    labels = np.arange(12) % 10
    np.savez(tmp_path / "own.npz", x_test=pixels, y_test=labels)
    suite = parse_suite("name: s\nthreats: [l2(1.0)]\nattacks: [fgsm]\n")
    model, data = UserModel(str(tmp_path / "net.safetensors"), arch="small_cnn"), f"npz:{tmp_path / 'own.npz'}"
    run(suite, models=[model], data=data, save_adversarials=True, out=tmp_path / "run", **HERE)
    robench("verify", tmp_path / "run", "--device", "cpu")
    np.savez(tmp_path / "own.npz", x_test=255 - pixels, y_test=labels)
    assert "not what the run measured" in robench("verify", tmp_path / "run", "--device", "cpu", code=1).output


def test_the_command_line_keeps_images(tmp_path):
    suite = tmp_path / "s.yaml"
    suite.write_text("name: s\nlimit: 4\nmodels: [digits-mlp]\nthreats: [linf(0.1)]\nattacks: [fgsm]\n")
    robench("run", "--suite", suite, "--out", tmp_path / "run", "--save-adversarials", "--width", 16,
            "--workers", 1, "--device", "cpu")  # fmt: skip
    assert "judged again: no difference" in robench("verify", tmp_path / "run", "--device", "cpu").output
    assert "robust_accuracy_8bit" in (tmp_path / "run" / "table.csv").read_text()


def test_bad_input_exits_2(tmp_path, kept):
    assert "run directory" in robench("verify", tmp_path / "nowhere", code=2).output
    robench("verify", kept, "--batch-size", 0, code=2)
    assert "cuda" in robench("verify", kept, "--device", "gpu", code=2).output


RANDOM = """
import torch
from torch import nn
from robench import zoo

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = zoo.load("digits-mlp")
    def forward(self, x):
        return self.inner(x + 0.3 * torch.randn_like(x))
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ``autoattack-rand``, with few steps, on a model that adds noise to its input, with the images."""
    folder, once = tmp_path_factory.mktemp("noisy"), _rand.once
    (folder / "mine.py").write_text(RANDOM)
    suite = SUITE.model_copy(update={"threats": ["linf(0.06)"], "attacks": ["autoattack-rand"], "limit": 12})
    told = {"models": [f"{folder / 'mine.py'}:Noisy"], "data": "digits", "trust": True, "save_adversarials": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rand, "once", lambda function, **params: once(function, **{**params, "steps": 4}))
        run(suite, out=folder / "run", **told, **HERE)
    return folder / "run"


def test_images_of_a_randomised_model_are_judged_again_by_as_many_draws(noisy):
    (path,) = Store(noisy).image_headers().values()
    header, rows = json.loads(path.read_text()), load(noisy)["evasion"]
    assert (header["draws"], header["hold"]) == (50, 256) and set(rows["draws"]) == {50}
    assert 3 < rows["broken"].sum() < len(rows) and rows["broken_8bit"].sum() > 3
    for batch in (5, 256):
        found = verify(noisy, device="cpu", batch_size=batch, trust=True)
        assert found.differences == () and (found.images, found.images_8bit) == (
            rows["broken"].sum(), rows["broken_8bit"].sum(),
        )  # fmt: skip


def test_an_image_that_a_randomised_model_surely_recognises_is_named(noisy):
    """Images that are broken nowhere near are told; those that other draws may decide otherwise are not."""
    (path,) = Store(noisy).image_headers().values()
    told = json.loads(path.read_text())
    tensors = read_tensors(images_of(path).read_bytes())
    case = evidence._case(path.stem, path)
    objects = open_cell(case.cell, Context("", "cpu", sources=tuple(map(tuple, told["sources"])), trust=True))
    data = objects.shard()
    sure = [i for i in tensors["ids"].tolist() if load(noisy)["evasion"].set_index("sample").loc[i, "score_clean"] == 1]
    clean = torch.stack([data.images((data.ids == i).nonzero()[0])[0] for i in sure])
    lines = case._compare(objects, clean, torch.tensor(sure), "images")
    assert 0 < len(lines) <= len(sure) and all("was broken, and is not now" in line for line in lines)


class Luck(torch.nn.Module):
    """Right four times in five, whatever the image is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = torch.where(torch.rand(len(x)) < 0.8, 1.0, -1.0)
        return torch.stack([margin, 0 * margin], 1)


def test_luck_breaks_no_8bit_image_of_a_randomised_model():
    x, y = torch.full((60, 1, 2, 2), 0.2), torch.zeros(60, dtype=torch.int64)
    told = {"x_adv": x, "broken": torch.arange(60) % 2 == 0, "threat": ThreatModel.parse("linf(0.1)"), "width": 16}
    assert not breaks_in_8bit(Luck(), x, y, draws=50, **told).any()
    y += 1
    assert torch.equal(breaks_in_8bit(Luck(), x, y, draws=50, **told), told["broken"])
