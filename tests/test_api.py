"""The Python API: what comes back from ``evaluate``, and what bad models, images and attacks get."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest
import torch
from torch import nn

import robench
from robench import api, evaluation
from robench.errors import ConfigError, DataError, ModelError, StoreError
from robench.spec import Context, Settings, ThreatModel
from robench.suite import parse_suite

EPS = 0.03


class Line(nn.Module):
    """Logits (-w·x - b, w·x + b): its nearest adversarial under linf is |margin| / (2 ‖w‖₁) away."""

    def __init__(self, pixels: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, pixels))
        self.bias = nn.Parameter(torch.tensor(0.05))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = x.flatten(1) @ self.weight + self.bias
        return torch.stack([-value, value], 1)


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Forty images around grey, labelled by the line, three of them wrongly."""
    pixels = 16
    grid = torch.arange(40 * pixels).reshape(40, pixels)
    x = 0.5 + 0.3 * torch.sin(grid * 0.7 + grid // pixels)
    x = x.reshape(40, 1, 4, 4).float()
    y = Line()(x).argmax(1)
    y[:3] = 1 - y[:3]
    return x, y


def evaluate(model, images, **more):
    x, y = images
    return evaluation.evaluate(model, x, y, **{"threat": f"linf({EPS})", "attacks": ["pgd(steps=10)"], **more})


def test_a_linear_model_is_exactly_as_robust_as_its_closed_form(images):
    x, y = images
    model = Line()
    found = evaluate(model, images, attacks=["fgsm", "pgd(steps=10, loss='margin')"])
    with torch.no_grad():
        value = x.flatten(1).double() @ model.weight.double() + model.bias.double()
    signed = torch.where(y == 1, value, -value)
    distance = signed / model.weight.detach().abs().sum()
    assert x.min() > EPS and x.max() < 1 - EPS and (distance - EPS).abs().min() > 1e-4
    assert found.robust_accuracy.value == pytest.approx((distance > EPS).double().mean().item())
    assert 0.1 < found.robust_accuracy.value < 0.9
    assert found.robust_accuracy.n == 40
    assert found.robust_accuracy.low < found.robust_accuracy.value < found.robust_accuracy.high


def test_rows_are_one_per_sample_and_attack(images):
    found = evaluate(Line(), images, attacks=["noise(draws=3)", "pgd(steps=3)"])
    assert len(found.rows) == 80
    assert found.rows.groupby("attack")["sample"].apply(list).tolist() == [list(range(40))] * 2
    assert set(found.rows["threat"]) == {f"linf({EPS})"}
    assert (found.rows["status"] == "ok").all()
    assert found.rows.loc[found.rows["sample"] < 3, "score_clean"].eq(0).all()
    assert found.rows.loc[found.rows["sample"] < 3, "forwards"].eq(0).all()


def test_images_reproduce_the_verdicts_and_keep_the_budget(images):
    x, y = images
    model = Line()
    found = evaluate(model, images, attacks=["noise(draws=3)", "pgd(steps=5)"])
    assert found.x_adv.shape == x.shape and found.x_adv.dtype == torch.float32
    assert (found.x_adv >= 0).all() and (found.x_adv <= 1).all()
    assert (found.x_adv.double() - x.double()).abs().max() <= EPS + 1e-6
    broken = found.rows.groupby("sample")["score_adv"].min().eq(0).to_numpy()
    again = model(found.x_adv).argmax(1).ne(y).numpy()
    assert (again == broken).all() and broken.any() and not broken.all()


def test_the_clean_image_stands_for_a_clean_mistake(images):
    y = images[1]
    found = evaluate(Line(), images)
    assert (Line()(found.x_adv[:3]).argmax(1) != y[:3]).all()


def test_result_is_the_same_again_for_other_batch_sizes_and_not_for_other_seeds(images):
    runs = [evaluate(Line(), images, batch_size=size).rows.drop(columns="seconds") for size in (None, 7, 40)]
    pd.testing.assert_frame_equal(runs[0], runs[1])
    pd.testing.assert_frame_equal(runs[0], runs[2])
    noise = [evaluate(Line(), images, attacks=["noise(draws=2)"], seed=s).rows["margin_adv"] for s in (0, 1)]
    assert not noise[0].equals(noise[1])


def test_a_sound_model_is_called_sound(images):
    assert evaluate(Line(), images, attacks=["noise(draws=3)", "pgd(steps=10)"]).validity.sound


def test_global_generators_and_the_images_stay_as_they_are(images):
    x = images[0]
    before, state = x.clone(), torch.get_rng_state()
    evaluate(Line(), images)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_model_in_train_mode_is_measured_in_eval_mode_and_restored(images):
    model = nn.Sequential(Line(), nn.Dropout(0.9))
    model[0].eval()
    model[0].weight.requires_grad_(False)
    found = evaluate(model, images)
    assert model.training and model[1].training and not model[0].training
    assert not model[0].weight.requires_grad and model[0].bias.requires_grad
    assert model[0].bias.grad is None
    assert found.robust_accuracy == evaluate(Line(), images).robust_accuracy


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x * 255, "divide by 255"),
        (lambda x: x - 0.5, r"in \[0, 1\]"),
        (lambda x: x.index_put((torch.tensor([4]),), torch.tensor(float("nan"))), "finite"),
        (lambda x: x.double(), "float32"),
        (lambda x: (x * 255).to(torch.uint8), "float32"),
        (lambda x: x[:, 0], "shape"),
        (lambda x: x[:0], "shape"),
        (lambda x: x.numpy(), "torch.Tensor"),
    ],
    ids=["bytes", "shifted", "nan", "double", "uint8", "no channels", "empty", "numpy"],
)
def test_bad_images_are_refused(images, change, match):
    x, y = images
    with pytest.raises(DataError, match=match):
        evaluate(Line(), (change(x), y))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda y: y + 1, r"in 0\.\.1"),
        (lambda y: y - 1, r"in 0\.\.1"),
        (lambda y: y.float(), "int64"),
        (lambda y: y[:-1], "label"),
        (lambda y: y.tolist(), "torch.Tensor"),
    ],
    ids=["too high", "negative", "float", "too few", "list"],
)
def test_bad_labels_are_refused(images, change, match):
    x, y = images
    with pytest.raises(DataError, match=match):
        evaluate(Line(), (x, change(y)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(images, value):
    model = Line()
    with torch.no_grad():
        model.weight[3] = value
    with pytest.raises(ModelError, match="'weight' must be finite"):
        evaluate(model, images)


def test_outputs_of_another_shape_are_refused(images):
    with pytest.raises(ModelError, match=r"logits \(64, K\), K at least 2, got 'a tensor \(64, 1, 2\) of float32'"):
        evaluate(nn.Sequential(Line(), nn.Unflatten(1, (1, 2))), images)


def test_probabilities_instead_of_logits_are_told_in_the_verdict(images):
    found = evaluate(nn.Sequential(Line(), nn.Softmax(1)), images)
    assert not found.validity.sound
    assert "probabilities, not logits" in str(found.validity)


def test_without_a_radius_logits_are_no_probabilities(images):
    model = nn.Sequential(Line(), nn.Softplus())
    assert not any("probabilities" in reason for reason in evaluate(model, images, threat="linf(0)").validity.reasons)


class Counting(Line):
    """Moves a buffer at every forward, even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def test_model_that_moves_its_buffers_is_an_error(images):
    with pytest.raises(ModelError, match="same after as before"):
        evaluate(Counting(), images)


class Masked(nn.Module):
    """Returns what no gradient passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Line()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.detach())


def test_model_without_gradients_is_unknown_never_robust(images):
    found = evaluate(Masked(), images)
    assert found.robust_accuracy.value == 0
    assert not found.validity.sound
    failed = found.rows[found.rows["status"] == "failed"]
    assert len(failed) == 37
    assert failed["error"].str.contains("NoGradientError").all()


def test_a_crashing_attack_makes_samples_unknown(images, monkeypatch):
    from robench import catalog

    def crash(victim, x, y, *, threat, seeds, **params):
        raise RuntimeError("planted")

    real = type(catalog.ATTACKS["fgsm"]).load
    monkeypatch.setattr(type(catalog.ATTACKS["fgsm"]), "load", lambda self: crash if self.name == "fgsm" else real(self))
    found = evaluate(Line(), images, attacks=["fgsm", "noise(draws=2)"])
    assert found.robust_accuracy.value == 0
    assert not found.validity.sound and "fgsm" in str(found.validity)
    assert found.rows.loc[found.rows["attack"] == "fgsm", "error"].str.contains("planted").sum() == 37
    with_pgd = evaluate(Line(), images, attacks=["fgsm", "pgd(steps=10)"])
    assert with_pgd.robust_accuracy.value == 0


class NotFinite(Line):
    """Logits turn NaN on the brightest images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = x.flatten(1).mean(1, keepdim=True) > 0.5
        return torch.where(bright, torch.nan, super().forward(x))


def test_logits_that_are_not_finite_are_never_robust(images):
    x, y = images
    found = evaluate(NotFinite(), (x, y))
    bright = set((x.flatten(1).mean(1) > 0.5).nonzero()[:, 0].tolist())
    assert bright
    kept = found.rows[found.rows["sample"].isin(bright)]
    assert not ((kept["status"] == "ok") & (kept["score_adv"] > 0)).any()


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"threat": "linf(8)"}, "did you mean 8/255"),
        ({"threat": "linv(0.1)"}, "norm"),
        ({"attacks": ["pdg"]}, "did you mean 'pgd'"),
        ({"attacks": ["pgd(stepz=3)"]}, "did you mean 'steps'"),
        ({"attacks": []}, "at least one attack"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_unknown_options_are_refused(images, more, match):
    with pytest.raises(ConfigError, match=match):
        evaluate(Line(), images, **more)


def test_an_attack_given_as_a_bare_string_is_refused(images):
    with pytest.raises(ConfigError):
        evaluate(Line(), images, attacks="fgsm")


def test_attack_that_does_not_know_the_norm_is_never_robust(images):
    with pytest.raises(ConfigError, match="norm"):
        evaluate(Line(), images, attacks=["fgsm"], threat="l0(3)")


def test_package_offers_the_api():
    assert robench.evaluate is evaluation.evaluate
    assert robench.run is api.run
    assert ThreatModel.parse("linf(8/255)").eps == pytest.approx(8 / 255)


def test_results_are_printed_in_one_short_line_without_tensors(images, tmp_path):
    x, y = images
    found = evaluate(Line(), images)
    attacked = evaluation.attack(Line(), x[:4], y[:4], threat=f"linf({EPS})")
    for result in (found, attacked):
        text = repr(result)
        rate = result.robust_accuracy
        assert (
            f"robust accuracy {100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}], "
            f"clean accuracy {100 * result.clean_accuracy.value:.1f} %, n = {rate.n}"
        ) in text
        assert result.validity.status in text and "x_adv" in text
        assert len(text) < 700 and "tensor(" not in text and "\n" not in text
    done = api.run(parse_suite("name: s\nlimit: 8\nmodels: [digits-mlp]\n"), out=tmp_path, device="cpu", workers=1)
    assert repr(done).startswith(f"Run({str(tmp_path)!r}: 2 cells computed, 0 kept, 0 failed")


class Brightest(nn.Module):
    """Answers the class of the brightest of four columns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 9 * x.mean((1, 2))


def columns(n: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose class is their bright column."""
    y = torch.arange(n) % 4
    x = torch.full((n, 1, 4, 4), 0.2)
    x[torch.arange(n), :, :, y] = 0.8
    return x, y


@pytest.mark.parametrize("call", ["evaluate", "attack"])
def test_labels_of_another_order_are_a_warning_and_a_note(call):
    x, y = columns()
    run = {"evaluate": evaluate, "attack": lambda model, pair: evaluation.attack(model, *pair, threat=f"linf({EPS})")}[call]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        right = run(Brightest(), (x, y))
    assert right.clean_accuracy.value == 1 and not any(note.startswith("labels: ") for note in right.validity.notes)
    with pytest.warns(UserWarning, match="0 of 24 images right, not above chance.*another order of the classes fits better"):
        found = run(Brightest(), (x, torch.tensor([1, 0, 3, 2])[y]))
    assert found.clean_accuracy.value == 0 and found.clean_accuracy.n == 24
    assert found.validity.notes[0].startswith("labels: 0 of 24 images right") and "labels: 0 of 24" in repr(found)


FLIPPED = """
import torch
from torch import nn

class Flipped(nn.Module):
    def forward(self, x):
        return 0 * x.flatten(1)[:, :10] + 9 * torch.eye(10)[3]

def make():
    return Flipped()
"""


def test_a_run_warns_of_labels_where_nobody_announces(tmp_path):
    (tmp_path / "m.py").write_text(FLIPPED)
    suite = parse_suite("name: s\nlimit: 40\n").only(["clean"])
    told: dict = {"models": [f"{tmp_path}/m.py:make"], "device": "cpu", "workers": 1, "trust": True}
    with pytest.warns(UserWarning, match="answers class 3 for all 40 images") as caught:
        api.run(suite, out=tmp_path / "a", **told)
    assert {(str(w.message).partition(": ")[0], w.filename) for w in caught} == {("m.py:make", __file__)}
    heard: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        api.run(suite, out=tmp_path / "b", announce=heard.append, **told)
    assert any(line.startswith("WARNING: ") and "answers class 3" in line for line in heard)


def test_the_api_shows_signs_of_life_on_request_only(images, capsys, tmp_path):
    x, y = images
    evaluate(Line(), images, verbose=True)
    assert "attack 1 of 1, pgd(steps=10): 0/40" in capsys.readouterr().err
    evaluation.attack(Line(), x[:4], y[:4], threat=f"linf({EPS})", verbose=True)
    assert "clean, broken so far: 0/4" in capsys.readouterr().err
    suite = parse_suite("name: s\nlimit: 8\nmodels: [digits-mlp]\n")
    api.run(suite, out=tmp_path, device="cpu", workers=1, verbose=True)
    told = capsys.readouterr().err
    assert told.startswith("reading data and models ...\n") and "cells: 2/2" in told
    evaluate(Line(), images)
    api.run(suite, out=tmp_path, device="cpu", workers=1)
    assert capsys.readouterr().err == ""


def test_run_and_load_round_trip(tmp_path):
    suite = tmp_path / "s.yaml"
    suite.write_text("name: s\nlimit: 20\nmodels: [digits-mlp]\nthreats: [linf(0.1)]\nattacks: [fgsm]\n")
    done = api.run(str(suite), out=tmp_path / "run", device="cpu", workers=1)
    frames = api.load(tmp_path / "run")
    assert done.summary.failures == () and sorted(frames) == ["clean", "evasion", "sentinel"]
    assert len(frames["evasion"]) == 20
    narrower = api.run(str(suite), out=tmp_path / "run", device="cpu", workers=1, limit=10)
    assert narrower.summary.kept == 1
    assert len(api.load(tmp_path / "run")["evasion"]) == 10


NARROW = """
from torch import nn

class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1024, 10)

    def forward(self, x):
        if len(x) > 64:
            raise RuntimeError("too many")
        return self.fc(x.flatten(1))

def make():
    return Narrow()
"""


def test_a_model_too_narrow_for_the_runs_width_is_told_which_width_it_takes(tmp_path):
    from robench import tryout

    (tmp_path / "narrow.py").write_text(NARROW)
    source, suite = f"{tmp_path / 'narrow.py'}:make", parse_suite("{name: t, threats: [linf(0.1)], attacks: [fgsm]}")
    plan, paths = api.plan_run(suite, models=[source], data="digits", limit=70, trust=True, settings=Settings(width=128))
    context = Context(str(tmp_path), "cpu", trust=True, sources=paths, code=plan.code)
    with pytest.raises(ModelError, match=r"narrow\.py:make: the model must be able to take 128 images.*--width 64"):
        tryout._look(plan.cells[0], context)
    plan, _ = api.plan_run(suite, models=[source], data="digits", limit=70, trust=True)
    assert any("clean accuracy" in line for line in tryout._look(plan.cells[0], context))


UNLIKE = """
import torch
from torch import nn

class Unlike(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1024, 10)

    def forward(self, x):
        logits = self.fc(x.flatten(1))
        {change}
        return logits

def make():
    return Unlike()
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("torch.as_tensor(x.numpy())", r"RuntimeError for 64 images that require a gradient: Can't call numpy\(\)"),
        ("logits = logits.masked_fill((torch.arange(10) == 9) & (x.mean() < 0.45), -torch.inf)", "logits masked with -inf"),
    ],
)
def test_a_model_that_cannot_be_asked_with_gradients_is_told_so(tmp_path, change, reason):
    from robench import tryout

    (tmp_path / "unlike.py").write_text(UNLIKE.replace("{change}", change))
    source, suite = f"{tmp_path / 'unlike.py'}:make", parse_suite("{name: t, threats: [linf(0.1)], attacks: [fgsm]}")
    plan, paths = api.plan_run(suite, models=[source], data="digits", limit=70, trust=True)
    context = Context(str(tmp_path), "cpu", trust=True, sources=paths, code=plan.code)
    with pytest.raises(ModelError, match=reason):
        tryout._look(plan.cells[0], context)


def test_load_of_no_run_is_told(tmp_path):
    with pytest.raises(StoreError, match="run directory"):
        api.load(tmp_path)


def test_a_transfer_needs_a_second_model(images):
    with pytest.raises(ConfigError, match="an attack of evaluate must be one that needs no second model, got 'transfer'"):
        evaluate(Line(), images, attacks=["transfer(source='digits-standard')"])


def test_the_model_goes_back_to_its_device_even_after_an_error():
    places = []

    class Placed(Line):
        def to(self, device):
            places.append(str(device))
            return self

    model = Placed()
    with pytest.raises(ZeroDivisionError), evaluation._moved(model, "cpu", "cuda:1"):
        _ = 1 / 0
    assert places == ["cuda:1", "cpu"]


def test_attacks_that_draw_in_call_order_do_not_depend_on_the_batch_size(images):
    attack = "art:ProjectedGradientDescent(num_random_init=1, max_iter=2)"
    first, second = (evaluate(Line(), images, attacks=[attack], batch_size=b).rows for b in (7, 40))
    assert first["margin_adv"].tolist() == second["margin_adv"].tolist()
    assert (first["margin_adv"] < first["margin_clean"]).any()


def test_arts_gradient_attacks_count_as_such(images):
    found = evaluate(Line(), images, attacks=["noise", "art:ProjectedGradientDescent(max_iter=40)"])
    assert found.validity.sound
    found = evaluate(Line(), images, attacks=["noise", "art:HopSkipJump(max_iter=1, max_eval=10, init_eval=2)"])
    assert "no gradient attack was run" in found.validity.reasons


@pytest.fixture
def user_models(tmp_path) -> str:
    """A file of factories: nets of 3 and of 12 logits for digits, which have 10 classes."""
    path = tmp_path / "mine.py"
    linear = "nn.Sequential(nn.Flatten(), nn.Linear(1024, {}))"
    path.write_text(f"from torch import nn\ndef few(): return {linear.format(3)}\ndef many(): return {linear.format(12)}\n")
    return str(path)


@pytest.mark.parametrize(
    ("factory", "attacks", "text"),
    [
        ("few", ["fgsm"], "the outputs of mine.py:few must be 10 per image, one for each class of digits, got 3"),
        ("many", ["fgsm"], "the outputs of mine.py:many must be 10 per image, one for each class of digits, got 12"),
    ],
)
def test_a_model_of_other_classes_than_data_or_surrogate_ends_the_run(user_models, tmp_path, factory, attacks, text):
    suite = parse_suite("{name: t, threats: [linf(0.1)], attacks: [fgsm]}").override(attacks=attacks, limit=8)
    with pytest.raises(ModelError, match=text):
        api.run(suite, models=[f"{user_models}:{factory}"], data="digits", out=tmp_path / "run", trust=True)
    assert not list((tmp_path / "run").glob("cells/*"))


def test_a_surrogate_of_other_classes_ends_the_run(user_models, tmp_path):
    suite = parse_suite("{name: t, threats: [linf(0.1)], attacks: [\"transfer(source='digits-mlp')\"], limit: 8}")
    told = {"models": [f"{user_models}:many"], "data": "digits", "class_map": "numbers", "trust": True}
    with pytest.raises(ModelError, match=r"the source digits-mlp must be those of mine.py:many, \(12,\), got"):
        api.run(suite, out=tmp_path / "run", **told)
    assert not list((tmp_path / "run").glob("cells/*"))
