"""Shifted sets, grids of rotations and groups: rows beside loops, and a whole run over the user's own files."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from robench import api
from robench.attacks._spatial import transformed
from robench.builders.predictions import forward_pass
from robench.cli import main
from robench.data.dataset import Dataset
from robench.errors import ConfigError, DataError
from robench.metrics.groups import UNGROUPED
from robench.metrics.table import tidy
from robench.scenarios.objects import Objects
from robench.scenarios.shift import groups, shift
from robench.scenarios.spatial import grid_name, spatial
from robench.spec import Artifact, Cell, Context, DatasetSpec, Ref
from robench.suite import parse_suite
from robench.workshop import Model, read_split

N, K = 21, 4
NAMES = ("ant", "bee", "cat", "dog")


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.sin(torch.arange(K * 64.0) * 1.3).reshape(K, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) - 0.5) @ self.weight.T


X = 0.5 + 0.4 * torch.sin(torch.arange(N * 64.0) * 1.7 + torch.arange(N * 64.0) // 64).reshape(N, 1, 8, 8)
Y = Linear()(X).argmax(1)
Y[::5], Y[1::4] = (Y[::5] + 1) % K, (Y[1::4] + 2) % K


def dataset(names: tuple[str, ...] = NAMES, y: torch.Tensor = Y) -> Dataset:
    return Dataset(DatasetSpec("memory", names, (1, 8, 8), ("test",)), torch.arange(len(y)) + 100, y, X.__getitem__)


class Given(Objects):
    """Objects whose further artifacts are handed over."""

    extras: tuple = ()

    def extra(self, position: int):
        return self.extras[position]


def given(*extras, batch_size: int = 256, shard: tuple[int, int] = (0, 1), net: nn.Module | None = None) -> Given:
    nothing = Artifact("model", Ref("memory"))
    cell = Cell(Ref("x"), "1", nothing, nothing, shard=shard)
    made = Given(cell, Context("", batch_size=batch_size), Model(net or Linear(), {}), dataset())
    object.__setattr__(made, "extras", extras)
    return made


def seen(data: Dataset):
    return forward_pass(Linear(), data, Context(""))


def test_a_shift_with_some_classes_is_judged_among_these_by_name():
    other = dataset(("dog", "bee"), torch.arange(N) % 2)
    rows = pd.DataFrame(shift(given(seen(other), seen(dataset()), other), name="s", line=(0.9, -0.5, 20), baseline="m"))
    logits = Linear()(X).detach()
    place = {0: 3, 1: 1}
    shifted = rows[rows["split"] == "shifted"]
    for row, values, label in zip(shifted.to_dict("records"), logits.tolist(), (torch.arange(N) % 2).tolist(), strict=True):
        best = 3 if values[3] > values[1] else 1
        assert row["pred"] == best and row["label"] == place[label] and row["score"] == float(best == place[label])
    clean = rows[rows["split"] == "clean"]
    assert list(clean["sample"]) == [100 + i for i in range(N) if int(Y[i]) in (1, 3)]
    for row in clean.to_dict("records"):
        values = logits[row["sample"] - 100].tolist()
        assert row["score"] == float(max((1, 3), key=lambda k: values[k]) == row["label"])
    assert set(rows["masked"]) == {2} and set(rows["slope"]) == {0.9} and set(rows["references"]) == {20}
    assert 0 < clean["score"].mean() < 1 and 0 < shifted["score"].mean() < 1


def test_a_shift_with_all_classes_changes_no_score_and_shards_are_parts():
    whole = pd.DataFrame(shift(given(seen(dataset()), seen(dataset()), dataset()), name="s"))
    plain = (Linear()(X).argmax(1) == Y).float().tolist()
    assert whole.loc[whole["split"] == "shifted", "score"].tolist() == plain and set(whole["masked"]) == {0}
    extras = (seen(dataset()), seen(dataset()), dataset())
    parts = [row for index in range(2) for row in shift(given(*extras, shard=(index, 2)), name="s")]
    assert sorted(map(str, parts)) == sorted(map(str, whole.to_dict("records")))


def test_unknown_classes_are_refused():
    other = dataset(("dog", "bird"), torch.arange(N) % 2)
    with pytest.raises(DataError, match="the classes of the shift s must be classes of the data set, got 'bird'"):
        shift(given(seen(other), seen(dataset()), other), name="s")


def test_samples_without_a_group_say_so():
    named = {100: "day", 101: "night"}
    rows = groups(given(seen(dataset()), named))
    assert [r["group"] for r in rows] == ["day", "night", *[UNGROUPED] * (N - 2)]
    assert [r["score"] for r in rows] == (Linear()(X).argmax(1) == Y).float().tolist()


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_the_grid_is_looked_at_as_a_whole(padding):
    angles, shifts = (-20.0, 0.0, 10.0), (-0.125, 0.0)
    rows = spatial(given(), angles=angles, shifts=shifts, padding=padding)
    settings = [(a, d, r) for a in angles for d in shifts for r in shifts]
    for i, row in enumerate(rows):
        images = transformed(X[i : i + 1].expand(12, -1, -1, -1), torch.tensor(settings).double(), padding=padding)
        logits = Linear()(images).detach()
        right = (logits.argmax(1) == Y[i]).float()
        others = logits.clone()
        others[:, Y[i]] = -math.inf
        margin = logits[:, Y[i]] - others.amax(1)
        clean = float(Linear()(X[i : i + 1]).argmax() == Y[i])
        assert row["score_mean"] == pytest.approx(float(right.mean())) and row["score_worst"] == min(
            float(right.min()), clean
        )
        assert (row["angle"], row["down"], row["right"]) == settings[int(margin.argmin())]
        assert row["score_clean"] == clean and row["broken"] == (row["score_worst"] < clean)
    assert {r["grid"] for r in rows} == {f"grid(angles=3 to 20, shifts=2 to 0.125, padding={padding})"}
    assert 0 < sum(r["broken"] for r in rows) < N


def test_padding_matters_and_rows_do_not_depend_on_how_many_are_held():
    zeros, reflected = (spatial(given(), shifts=(0.0, 0.25), padding=p) for p in ("zeros", "reflection"))
    assert [r["score_mean"] for r in zeros] != [r["score_mean"] for r in reflected]
    few = spatial(given(batch_size=4), shifts=(0.0, 0.25), padding="zeros")
    assert [{**r, "margin_worst": 0} for r in few] == [{**r, "margin_worst": 0} for r in zeros]


def test_a_clean_mistake_is_never_robust_and_nan_is_broken():
    rows = spatial(given(), angles=(20.0,), shifts=(0.125,))
    assert all(r["score_worst"] <= r["score_clean"] for r in rows) and any(r["score_mean"] > r["score_worst"] for r in rows)

    class Undefined(Linear):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where((x[:, :, 0, 0] == 0), torch.nan, logits)

    rows = spatial(given(net=Undefined()), angles=(0.0, 30.0), shifts=(0.0,))
    assert all(r["score_worst"] == 0 for r in rows) and {r["angle"] for r in rows if r["score_clean"]} == {30.0}


def test_unusable_grids_are_refused():
    with pytest.raises(ConfigError, match="padding must be one of zeros, border, reflection"):
        spatial(given(), padding="mirror")
    with pytest.raises(ConfigError, match="angles and shifts"):
        spatial(given(), angles=())
    assert grid_name((0.0, -30.0, 0.0), (0.0,), "zeros") == "grid(angles=2 to 30, shifts=1 to 0, padding=zeros)"


SUITE = """
name: shifts
limit: 120
models: [digits-mlp, digits-standard]
threats: []
defenses: []
compression: {models: [digits-mlp], arms: [prune(amount=0.9)]}
spatial: {angles: [0, 20], shifts: [0.0], padding: zeros}
robust_gap: {limit: 100, threats: [linf(0.1)], attacks: [fgsm]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Darker digits of three classes as a user's folder, groups of test samples, and reference models."""
    home = tmp_path_factory.mktemp("user")
    test = read_split("digits", "test")
    for label in (2, 5, 7):
        place = home / "dark" / test.spec.classes[label]
        place.mkdir(parents=True)
        rows = (test.labels == label).nonzero()[:30, 0]
        for i, image in enumerate(test.images(rows)):
            Image.fromarray((image[0] * 120).round().byte().numpy()).save(place / f"{i}.png")
    lines = [f"{i},{'even' if y % 2 == 0 else 'odd'}" for i, y in zip(test.ids.tolist(), test.labels.tolist(), strict=True)]
    (home / "groups.csv").write_text("\n".join(["sample,group", *lines]), encoding="utf-8")
    clean = np.linspace(0.7, 0.98, 22)
    (home / "reference.csv").write_text("clean,shifted\n" + "\n".join(f"{c},{c - 0.2}" for c in clean), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def frames(folder, tmp_path_factory):
    shift = f"{{dark: {{data: 'folder:{folder}/dark', reference: {folder}/reference.csv, baseline: digits-mlp}}}}"
    suite = parse_suite(SUITE + f"shifts: {shift}\ngroups: {folder}/groups.csv\n")
    done = api.run(suite, out=tmp_path_factory.mktemp("run"), workers=1)
    assert done.summary.failures == ()
    return api.load(done.out)


def test_a_run_asks_every_model_about_the_shifted_images(frames, folder):
    rows = frames["shift"]
    asked = set(zip(rows["model"], rows["condition"], strict=True))
    assert asked == {("digits-mlp", ""), ("digits-standard", ""), ("digits-mlp", "prune(amount=0.9)")}
    assert set(rows["masked"]) == {7} and (rows["split"] == "shifted").sum() == 3 * 90
    assert set(rows["label"]) == {2, 5, 7}
    table = tidy(frames)
    found = table[(table["scenario"] == "shift") & (table["model"] == "digits-mlp") & (table["condition"] != "")]
    assert set(found["metric"]) == {"shifted_accuracy", "shift_gap", "effective_robustness", "relative_robustness"}
    relative = table[(table["metric"] == "relative_robustness") & (table["model"] == "digits-standard")]
    assert relative["attack"].tolist() == ["over digits-mlp"]


def test_a_run_has_spatial_group_and_robust_gap_lines(frames):
    table = tidy(frames)
    names = set(table["metric"])
    assert {"spatial_robust_accuracy", "spatial_mean_accuracy", "worst_group_accuracy", "group_accuracy"} <= names
    assert {"robust_gap", "robust_accuracy_train", "robust_accuracy", "train_test_gap", "worst_class_accuracy"} <= names
    gap = table[(table["metric"] == "robust_gap") & (table["model"] == "digits-mlp")].iloc[0]
    both = [frames[s][frames[s]["model"] == "digits-mlp"] for s in ("evasion_train", "evasion")]
    means = [np.minimum(f["score_clean"], f["score_adv"]).mean() for f in both]
    assert gap["value"] == pytest.approx(means[0] - means[1]) and gap["n"] == 100
    worst = table[(table["metric"] == "spatial_robust_accuracy") & (table["model"] == "digits-mlp")].iloc[0]
    assert worst["n"] == 120 and "padding=zeros" in worst["threat"]


def plan(extra: str):
    return api.plan_run(parse_suite(SUITE + extra))


def test_bad_input_is_refused_before_anything_runs(folder, tmp_path):
    for name in ("2", "vase"):
        (tmp_path / "odd" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "odd" / name / "0.png")
    with pytest.raises(DataError, match="the classes of the shift odd must be classes of the data set, got 'vase'"):
        plan(f"shifts: {{odd: 'folder:{tmp_path}/odd'}}")
    with pytest.raises(DataError, match="a folder data set must be an existing folder"):
        plan(f"shifts: {{gone: 'folder:{tmp_path}/gone'}}")
    with pytest.raises(DataError, match=r"the images of folder:.* must be .* as the data set's"):
        plan(f"shifts: {{small: 'folder:{folder}/dark(size=5)'}}")
    with pytest.raises(DataError, match=r"the columns of .* must be sample,group"):
        plan(f"groups: {folder}/reference.csv")
    (tmp_path / "few.csv").write_text("clean,shifted\n0.9,0.8\n")
    with pytest.raises(DataError, match="a reference population must be at least 20 models, got 1"):
        plan(f"shifts: {{dark: {{data: 'folder:{folder}/dark', reference: {tmp_path}/few.csv}}}}")


def test_content_of_shifted_images_and_groups_is_part_of_the_identity(folder, tmp_path):
    def digests(text: str) -> set[str]:
        cells = plan(text)[0].cells
        return {c.digest for c in cells if c.scenario.name in ("shift", "groups")}

    path = tmp_path / "groups.csv"
    path.write_text("sample,group\n7,a\n")
    first = digests(f"shifts: {{dark: 'folder:{folder}/dark'}}\ngroups: {path}")
    assert first == digests(f"shifts: {{dark: 'folder:{folder}/dark'}}\ngroups: {path}") and len(first) == 3 + 2
    path.write_text("sample,group\n7,b\n")
    assert len(first & digests(f"shifts: {{dark: 'folder:{folder}/dark'}}\ngroups: {path}")) == 3


def test_groups_of_samples_that_do_not_exist_are_refused(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("sample,group\n7,a\n-1,a\n1795,b\n90000,b\n90001,b\n")
    expected = r"ids of the 500 test samples \(7\.\.1794\), got '-1, 1795, 90000 and 1 more'"
    with pytest.raises(DataError, match=expected):
        plan(f"groups: {path}")


def command(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["run", "--model", "digits-mlp", "--workers", "1", *map(str, args)])
    return result.exit_code, result.output


def test_the_command_line_takes_shifted_sets_and_groups(folder, tmp_path):
    only = ("--scenario", "shift", "--scenario", "groups", "--scenario", "clean")
    given = ("--shift", f"dark=folder:{folder}/dark", "--groups", folder / "groups.csv")
    code, told = command("--suite", "smoke", *given, *only, "--out", tmp_path / "run")
    assert code == 0, told
    table = pd.read_csv(tmp_path / "run" / "table.csv")
    assert set(table.loc[table["scenario"] == "shift", "threat"]) == {"dark"}
    assert set(table.loc[table["metric"] == "group_accuracy", "threat"]) == {"even", "odd"}


@pytest.mark.parametrize("text", ["dark", "=digits", "dark=", "folder:a=b"])
def test_a_shift_without_name_or_data_is_refused(text):
    code, told = command("--suite", "smoke", "--shift", text, "--dry-run")
    assert code == 2 and "--shift must be NAME=DATA" in told
