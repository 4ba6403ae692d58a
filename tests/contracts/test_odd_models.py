"""Odd models at every way in: the numbers of the plain model, or a refusal in one line before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robench
from robench import attacks
from robench.cli import main
from robench.errors import ModelError
from robench.workshop import read_split

THREAT, SHOWN = "linf(0.1)", 8


class Plain(nn.Module):
    """Distances to the first images of ten classes: right on many digits, and quick."""

    def __init__(self) -> None:
        super().__init__()
        data = read_split("digits", "train")
        labels = data.labels
        first = torch.stack([(labels == k).nonzero()[0, 0] for k in range(10)])
        images = data.images(first).flatten(1)
        self.fc = nn.Linear(images.shape[1], 10)
        with torch.no_grad():
            self.fc.weight.copy_(0.2 * images)
            self.fc.bias.copy_(-0.1 * (images**2).sum(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Wrapped(nn.Module):
    """What the plain model returns, turned into something else."""

    def __init__(self, change) -> None:
        super().__init__()
        self.net, self.change = Plain(), change

    def forward(self, x: torch.Tensor):
        return self.change(self.net(x))


class InPlace(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.sub_(0.25)
        return super().forward(x.add_(0.25))


class Spoiling(Plain):
    """Leaves its images spoilt behind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        x.detach().mul_(-3.0)
        return found


class Autocast(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Few(Plain):
    """Takes between ``least`` and ``most`` images at once."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.least <= len(x) <= self.most:
            raise RuntimeError(f"a batch of {self.least} to {self.most}, please")
        return super().forward(x)


class Masked(Plain):
    """Has twelve classes, of which the first and the last are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0] * 10 + [-torch.inf] * 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(super().forward(x), (0, 2)) + self.mask


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Raising(Plain):
    class Own(Exception):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.Own("no images today")


class Leaving(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise SystemExit(0)


def under_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Plain()


def function():
    net = Plain()
    return lambda x: net(x)


def frozen() -> nn.Module:
    return torch.jit.freeze(torch.jit.script(Plain().eval()))


WORKS = {
    "tuple": lambda: Wrapped(lambda z: (z, torch.cat([z, z], 1))),
    "list": lambda: Wrapped(lambda z: [z]),
    "dict": lambda: Wrapped(lambda z: {"logits": z, "loss": None}),
    "dict of one": lambda: Wrapped(lambda z: {"out": z, "n": z.sum()}),
    "dataclass": lambda: Wrapped(Answer),
    "float64 outputs": lambda: Wrapped(lambda z: z.double()),
    "float64 weights": lambda: Plain().double(),
    "trailing sides": lambda: Wrapped(lambda z: z[:, :, None, None]),
    "in place": InPlace,
    "spoiling": Spoiling,
    "one at a time": lambda: Few(1, 1),
    "at most 8": lambda: Few(1, 8),
    "two to 32": lambda: Few(2, 32),
    "exactly 10": lambda: Few(10, 10),
    "masked classes": Masked,
    "inference mode": under_inference_mode,
    "function": function,
    "frozen": frozen,
    "scripted": lambda: torch.jit.script(Plain()),
    "train mode": lambda: Plain().train(),
}
ROUNDED = {
    "float16 outputs": lambda: Wrapped(lambda z: z.half()),
    "float16 weights": lambda: Plain().half(),
    "bfloat16 weights": lambda: Plain().bfloat16(),
    "autocast": Autocast,
}
REFUSED = {
    "one logit": (lambda: Wrapped(lambda z: z[:, :1]), "K at least 2"),
    "vector": (lambda: Wrapped(lambda z: z[:, 0]), r"torch\.stack"),
    "none": (lambda: Wrapped(lambda z: None), "NoneType"),
    "indices": (lambda: Wrapped(lambda z: z.argmax(1)), "int64"),
    "features first": (lambda: Wrapped(lambda z: (torch.cat([z, z], 1), z)), "narrower"),
    "another head first": (lambda: Wrapped(lambda z: (z.roll(1, 1), z)), "narrower"),
    "two of a kind": (lambda: Wrapped(lambda z: {"a": z, "b": z}), "'a', 'b'"),
    "half of the rows": (lambda: Wrapped(lambda z: z[::2]), r"\(64, K\)"),
    "nan": (lambda: Wrapped(lambda z: z * torch.nan), "finite"),
    "counting": (Counting, "'calls' changed by the first pass"),
    "raising": (Raising, "no images today"),
    "leaving": (Leaving, r"sys\.exit\(0\)"),
}


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    data = read_split("digits", "test")
    return data.images(torch.arange(SHOWN)), data.labels[:SHOWN].clone()


def evaluated(model, x, y) -> list[float]:
    found = robench.evaluate(model, x, y, threat=THREAT, attacks=["pgd(steps=5)"])
    return [*found.rows["margin_adv"], float(found.robust_accuracy.value), found.validity.status]


WAYS = {
    "evaluate": evaluated,
    "pgd": lambda model, x, y: attacks.pgd(model, x, y, threat=THREAT, steps=5).flatten().tolist(),
    "apgd": lambda model, x, y: attacks.apgd(model, x, y, threat=THREAT, steps=5).flatten().tolist(),
    "square": lambda model, x, y: attacks.square(model, x, y, threat=THREAT, queries=10).flatten().tolist(),
}
_plain: dict[str, list[float]] = {}


def plain(way: str, images) -> list[float]:
    if way not in _plain:
        _plain[way] = WAYS[way](Plain(), *images)
    return _plain[way]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORKS)
def test_an_odd_model_gets_the_numbers_of_the_plain_one(name, way, images) -> None:
    x, y = (tensor.clone() for tensor in images)
    found = WAYS[way](WORKS[name](), x, y)
    assert found == pytest.approx(plain(way, images), abs=1e-4)
    assert torch.equal(x, images[0]) and torch.equal(y, images[1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_models_run_and_stay_in_the_ball(name, way, images) -> None:
    found = WAYS[way](ROUNDED[name](), *images)
    if way == "evaluate":
        assert found[-2] == pytest.approx(plain(way, images)[-2], abs=0.13)
    else:
        assert (torch.tensor(found) - images[0].flatten()).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("way", [*WAYS, "attack"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused_in_one_line(name, way, images) -> None:
    build, match = REFUSED[name]
    ways = {**WAYS, "attack": lambda model, x, y: robench.attack(model, x, y, threat=THREAT)}
    with pytest.raises(ModelError, match=match) as caught:
        ways[way](build(), *images)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["float64 outputs", "two to 32", "masked classes", "frozen", "function"])
def test_a_protocol_says_of_an_odd_model_what_it_says_of_the_plain_one(name, images) -> None:
    found, wanted = (robench.attack(m, *images, threat=THREAT) for m in (WORKS[name](), Plain()))
    assert found.robust.tolist() == wanted.robust.tolist() and found.validity.status == wanted.validity.status


SOURCE = """
import sys
sys.path.insert(0, {folder!r})
from test_odd_models import REFUSED, ROUNDED, WORKS, Plain


def plain():
    return Plain()


{functions}
"""


@pytest.fixture(scope="module")
def factories(tmp_path_factory):
    """A file with a factory for every odd model."""
    odd = {**WORKS, **ROUNDED, **{name: build for name, (build, _) in REFUSED.items()}}
    lines = [f"def {_word(name)}():\n    return {_table(name)}\n" for name in odd]
    path = tmp_path_factory.mktemp("factories") / "odd.py"
    path.write_text(SOURCE.format(folder=str(Path(__file__).parent), functions="\n".join(lines)))
    suite = path.parent / "tiny.yaml"
    suite.write_text(
        "{name: tiny, version: 1, summary: tiny, data: digits, threats: ['linf(0.1)'], attacks: ['pgd(steps=5)']}"
    )
    return path, suite


def _word(name: str) -> str:
    return name.replace(" ", "_") + "_model"


def _table(name: str) -> str:
    return f"REFUSED[{name!r}][0]()" if name in REFUSED else f"{'WORKS' if name in WORKS else 'ROUNDED'}[{name!r}]()"


def ran(factories, names: list[str], out):
    path, suite = factories
    models = [text for name in names for text in ("--model", f"{name}={path}:{name}")]
    args = ["run", "--suite", str(suite), *models, "--data", "digits", "--limit", str(SHOWN), "--trust", "--workers", "1"]
    return CliRunner().invoke(main, [*args, "--out", str(out), "--scenario", "clean", "--scenario", "evasion"])


@pytest.mark.slow
def test_a_run_of_odd_models_gives_the_numbers_of_the_plain_one(factories, tmp_path) -> None:
    names = ["plain", *(_word(name) for name in WORKS if name != "masked classes")]  # a run wants as many logits as classes
    found = ran(factories, names, tmp_path / "run")
    assert found.exit_code == 0, found.output
    rows = robench.load(tmp_path / "run")["evasion"].sort_values(["model", "sample"])
    wanted = rows[rows["model"] == "plain"]
    for name in names:
        own = rows[rows["model"] == name]
        assert own["margin_adv"].tolist() == pytest.approx(wanted["margin_adv"].tolist(), abs=1e-4), name
        assert own["score_adv"].tolist() == wanted["score_adv"].tolist(), name


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in REFUSED if name not in ("one logit", "leaving")]


@pytest.mark.parametrize("name", ["one logit", *SLOW])
def test_a_run_refuses_in_one_line_and_computes_nothing(name, factories, tmp_path) -> None:
    found = ran(factories, [_word(name)], tmp_path / "run")
    told = [line for line in found.output.splitlines() if line.startswith("robench:")]
    assert found.exit_code == 2 and len(told) == 1 and _word(name) in told[0], found.output
    assert not (tmp_path / "run" / "cells").exists()


@pytest.mark.slow
def test_a_run_goes_on_without_a_model_that_ends_its_process(factories, tmp_path) -> None:
    found = ran(factories, ["plain", _word("leaving")], tmp_path / "run")
    assert found.exit_code == 3 and "Traceback" not in found.output
    rows = robench.load(tmp_path / "run")["evasion"]
    assert set(rows.loc[rows["status"] == "ok", "model"]) == {"plain"}
