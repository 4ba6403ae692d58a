"""Trainings on sampled data: what the rows say, other weights for every arm, sources that saw no image of the target."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from robench import workshop
from robench.builders import training
from robench.data.sampling import held_out
from robench.defenses.training import accuracy
from robench.errors import ConfigError, DataError, ModelError
from robench.spec import Artifact, Context, Ref

TRAIN = Artifact("data", Ref.of("images", source="digits", split="train", limit=300), label="digits")
SMALL = {"arch": "small_cnn(width=4)", "steps": 4, "batch_size": 16}


def sampled(seed: int = 0, **args: object) -> Artifact:
    return Artifact("data", Ref.of("sampled", seed=seed, **args), inputs=(TRAIN,))


def trained(images: Artifact, *source: Artifact, seed: int = 0, **args: object) -> Artifact:
    return Artifact("model", Ref.of("trained", seed=seed, **{**SMALL, **args}), inputs=(images, *source), stored=True)


def test_the_rows_say_what_was_trained_on(context: Context) -> None:
    model = workshop.load_model(trained(sampled(fraction=0.5, label_noise=0.4, seed=2), augment="mixup", seed=2), context)
    made = model.made
    known = {"fraction": 0.5, "shots": 0, "imbalance": 1.0, "label_noise": 0.4, "noise": "symmetric", "augment": "mixup",
             "transfer": "", "train_seed": 2, "steps": 4, "train_n": 150, "recipe": "standard", "classes": ""}  # fmt: skip
    assert {key: made[key] for key in known} == known
    assert len(made["weights_sha256"]) == 64 and 0 <= made["train_accuracy"] <= 1
    data = workshop.load(sampled(fraction=0.5, label_noise=0.4, seed=2), context)
    wrong = data.labels != data.true_labels
    assert made["noisy_n"] == int(wrong.sum()) > 0
    assert made["memorised_n"] == int((model.net(data.images()).argmax(1) == data.labels)[wrong].sum())
    assert made["train_accuracy"] == pytest.approx(accuracy(model.net, data))


def test_weights_differ_between_all_fractions_seeds_and_arms(context: Context) -> None:
    hashes = []
    for fraction, seed in itertools.product((0.2, 1.0), (0, 1)):
        for arm in ({}, {"augment": "mixup"}, {"augment": "cutout(size=8)"}, {"recipe": "augmented"}, {"validation": 0.2}):
            images = sampled(fraction=fraction, seed=seed) if fraction < 1 else TRAIN
            hashes.append(workshop.load_model(trained(images, seed=seed, **arm), context).made["weights_sha256"])
    for more in ({"shots": 3}, {"imbalance": 5.0}, {"label_noise": 0.3}, {"label_noise": 0.3, "noise": "asymmetric"}):
        hashes.append(workshop.load_model(trained(sampled(**more)), context).made["weights_sha256"])
    assert len(set(hashes)) == len(hashes) == 24


def test_a_transfer_starts_from_its_source_and_shares_no_image(context: Context) -> None:
    source = trained(sampled(classes="first_half"))
    target = sampled(classes="second_half", fraction=0.5)
    first, second = (workshop.load(a, context) for a in (sampled(classes="first_half"), target))
    assert not set(first.ids.tolist()) & set(second.ids.tolist()) and set(first.spec.classes).isdisjoint(second.spec.classes)
    made = {}
    for mode in ("linear_probe", "fine_tune", "lp_ft"):
        model = workshop.load_model(trained(target, source, transfer=mode), context)
        assert model.net(second.images(torch.arange(3))).shape == (3, 5)
        assert (model.made["transfer"], model.made["train_n"], model.made["steps"]) == (mode, len(second), 4)
        made[mode] = model
    body = workshop.load_model(source, context).net.state_dict()
    probed = made["linear_probe"].net.state_dict()
    assert all(torch.equal(probed[k], v) for k, v in body.items() if not k.startswith("7."))
    assert len({m.made["weights_sha256"] for m in made.values()}) == 3


def test_a_source_that_saw_a_target_image_or_an_unknown_one_is_refused(context: Context) -> None:
    target = sampled(classes="second_half")
    with pytest.raises(DataError, match=r"images of source and target must be different ones.*in both"):
        workshop.build(trained(target, trained(sampled(classes="5,6")), transfer="lp_ft"), context)
    zoo = Artifact("model", Ref.of("zoo", name="digits-mlp"), label="digits-mlp")
    with pytest.raises(ModelError, match="whose training images are known"):
        workshop.build(trained(target, zoo, transfer="lp_ft"), context)
    with pytest.raises(ConfigError, match="transfer or early stopping"):
        source = trained(sampled(classes="first_half"))
        workshop.build(trained(target, source, transfer="lp_ft", validation=0.2), context)


def test_early_stopping_sees_a_part_of_the_sample_only(context: Context) -> None:
    artifact = trained(sampled(fraction=0.4), validation=0.25, steps=10)
    made = workshop.load_model(artifact, context).made
    data = workshop.load(sampled(fraction=0.4), context)
    rest, chosen = held_out(data, 0.25, seed=0)
    assert (made["train_n"], made["validation_n"]) == (len(rest), len(chosen)) == (90, 30)
    assert made["validation_accuracy"] == pytest.approx(accuracy(workshop.load_model(artifact, context).net, chosen))
    assert 1 <= made["stopped_at"] <= 10


@pytest.mark.parametrize(
    ("args", "error"), [({"shots": 40}, "fewer in"), ({"fraction": 0.01}, "at least one sample per class")]
)
def test_samples_that_cannot_be_are_refused(context: Context, args: dict[str, object], error: str) -> None:
    with pytest.raises(DataError, match=error):
        workshop.load(sampled(**args), context)


def test_a_transfer_goes_on_where_it_was_stopped(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, target = trained(sampled(classes="first_half")), sampled(classes="second_half")
    artifact = trained(target, source, transfer="lp_ft", steps=120)
    whole = workshop.load_model(artifact, context).made["weights_sha256"]
    other = Context(str(tmp_path / "other"))
    workshop.build(source, other)
    real, calls = torch.optim.AdamW.step, 0

    def stopping(self: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 115:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        workshop.build(artifact, other)
    assert not workshop.is_built(artifact, other)
    monkeypatch.setattr(training, "_fitted", lambda *a: pytest.fail("from scratch"))
    assert workshop.load_model(artifact, other).made["weights_sha256"] == whole
    assert sorted(p.name for p in workshop.folder(artifact, other).iterdir()) == ["header.json", "model.safetensors"]
