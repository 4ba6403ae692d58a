"""The twin's agreement is measured on clean, corrupted and adversarial images, one row each."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from robench import workshop
from robench.errors import ModelError
from robench.scenarios.objects import open_cell
from robench.scenarios.twin import twin
from robench.spec import Artifact, Cell, Context, Ref

PARENT = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
TEST = Artifact("data", Ref.of("images", source="digits", split="test", limit=20), label="digits")
CORRUPTED = Artifact("data", Ref.of("corrupted", corruption="contrast", table="digits-v1"), inputs=(TEST,), stored=True)
SEVERE = Artifact("data", Ref.of("severity", severity=3), inputs=(CORRUPTED,))


class Coarse(nn.Module):
    """A model whose logits are rounded, with the smooth one as its twin."""

    gradient, substitute = False, "smooth"

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).detach().round()

    def smooth(self, x):
        return self.inner(x)


def rows_of(net, tmp_path, *, batch=256):
    cell = Cell(Ref("twin"), "1", PARENT, TEST, extra=(SEVERE,))
    objects = open_cell(cell, Context(str(tmp_path), batch_size=batch))
    object.__setattr__(objects, "model", workshop.Model(net(objects.net), {}))
    return pd.DataFrame(twin(objects, threat="linf(0.1)"))


def test_rows_say_how_far_the_twin_is_off_on_every_kind_of_images(tmp_path):
    rows = rows_of(Coarse, tmp_path)
    assert rows.groupby(["images", "severity"]).size().to_dict() == {
        ("clean", 0): 20, ("contrast", 3): 20, ("linf(0.1)", 0): 20,
    }  # fmt: skip
    assert (rows["difference_max"] <= 0.5).all() and (rows["difference_mean"] <= rows["difference_max"]).all()
    assert rows["difference_mean"].between(0.1, 0.4).mean() > 0.9 and (rows["relative"] < 0.5).all()
    assert rows["agrees"].isin((0, 1)).all() and rows["agrees"].mean() > 0.8
    again = rows_of(Coarse, tmp_path, batch=7)
    pd.testing.assert_frame_equal(rows, again.sort_values(["images"], key=lambda c: c.map(_place), kind="stable"))


def _place(name):
    return {"clean": 0, "contrast": 1, "linf(0.1)": 2}[name]


def test_adversarial_images_are_those_of_the_model_with_the_twins_gradient(tmp_path):
    seen = []

    class Watched(Coarse):
        def smooth(self, x):
            seen.append(x.requires_grad)
            return self.inner(x)

    rows_of(Watched, tmp_path)
    assert sum(seen) >= 20  # a gradient step each


def test_outputs_that_are_not_finite_agree_with_nothing(tmp_path):
    class Silent(Coarse):
        def forward(self, x):
            return self.inner(x) * torch.nan

    rows = rows_of(Silent, tmp_path)
    assert (rows["agrees"] == 0).all() and rows["difference_max"].isna().all()


def test_a_model_without_a_twin_is_refused(tmp_path):
    with pytest.raises(ModelError, match="a model with a twin must be one with a method smooth"):
        rows_of(lambda inner: inner, tmp_path)
