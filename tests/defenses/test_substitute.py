"""Substitute gradients: the forward pass stays, the backward pass is the stand-in's; and holes are found and named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robench.attacks import pgd
from robench.bpda import STAND_INS
from robench.defenses import bridged, gradient_holes, substitute
from robench.defenses._bit_depth import bit_depth
from robench.defenses._jpeg import Jpeg, compressed, cosines, jpeg, quantisation
from robench.errors import ConfigError, ModelError
from robench.inference import fingerprint, predict
from robench.models.exported import Exported
from robench.ops.random import Draws
from robench.spec import ThreatModel
from robench.victim import Victim
from robench.zoo import load

X = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def net(*before: nn.Module, inputs: int = 256) -> nn.Sequential:
    """A small smooth net behind some layers."""
    torch.manual_seed(0)
    return nn.Sequential(*before, nn.Flatten(), nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 4)).eval()


def gradient(model: nn.Module, x: Tensor = X) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 0].sum(), x)[0]


def argmax_one_hot(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x.argmax(1), x.shape[1]).to(x.dtype)


def median(x: Tensor) -> Tensor:
    return nn.functional.unfold(x, 3, padding=1).median(dim=1).values.view_as(x)


LAYERS = {"round": torch.round, "detach": Tensor.detach, "sign": torch.sign, "step": lambda x: (x > 0.5).float()}


# --- stand-ins


@pytest.mark.parametrize("make", [lambda m: bit_depth(m, bits=3), lambda m: jpeg(m, quality=60)])
def test_the_forward_pass_stays_bit_by_bit_and_the_gradient_is_the_net_s_own_at_the_changed_image(make):
    inner = net()
    defended = make(inner)
    twin = substitute(defended, {"change": "identity"})
    assert torch.equal(substitute(defended)(X.clone().requires_grad_()), defended(X))
    assert torch.equal(twin(X), defended(X))
    assert torch.equal(twin(X.clone().requires_grad_()), defended(X))
    assert torch.equal(gradient(twin), gradient(inner, defended.change(X)))


def test_weights_are_shared_and_the_model_is_left_alone():
    model = bit_depth(net())
    before = fingerprint(model)
    twin = substitute(model)
    assert fingerprint(model) == before
    assert all(a is b for a, b in zip(twin.parameters(), model.parameters(), strict=True))
    assert not gradient(model).any()
    assert twin.change is not model.change and not twin.training


@pytest.mark.parametrize("name", ["identity", "straight_through", "blur"])
def test_a_stand_in_s_gradient_is_pulled_back(name):
    model, points = net(Call(torch.round)), X * 1.4 - 0.2
    twin = substitute(model, {"0": name})
    outer = gradient(model[1:], points.round())
    leaf = points.clone().requires_grad_()
    want = torch.autograd.grad(STAND_INS[name](leaf), leaf, outer)[0]
    assert torch.equal(gradient(twin, points), want) and want.any()


def test_straight_through_stops_at_saturated_pixels():
    points = X * 3 - 1
    found = gradient(substitute(net(Call(torch.round)), {"0": "straight_through"}), points)
    outside = (points < 0) | (points > 1)
    assert not found[outside].any() and found[~outside].any()


def test_smooth_is_the_layer_s_own_copy_and_near_it():
    model = bit_depth(net(), bits=2)
    twin = substitute(model, {"BitDepth": "smooth"})
    assert torch.equal(twin(X), model(X))
    assert (model.change.smooth(X) - X).abs().max() < 0.5 / 3
    at_half = torch.full_like(X, 0.5)  # a step's steepest place: the slope of t - sin(2 pi t) / (4 pi) at t = 1.5 is 1.5
    assert torch.allclose(gradient(twin, at_half), 1.5 * gradient(substitute(model), at_half), rtol=1e-4)


def round_trip(x: Tensor, quality: int) -> Tensor:
    return torch.stack([compressed(image, quality) for image in x])


def pictures(channels: int, side: int) -> Tensor:
    """Smooth images with a little noise."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(4, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=side, mode="bilinear") * 0.6 + 0.2
    return smooth + 0.02 * torch.randn(smooth.shape, generator=generator)


def test_jpeg_s_transform_is_orthonormal_and_its_tables_are_the_standard_s():
    assert torch.allclose(cosines() @ cosines().T, torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert (quantisation(50) * 255).round()[0, 0].tolist() == [16, 11, 10, 16, 24, 40, 51, 61]  # ITU-T T.81, table K.1
    assert (quantisation(50) * 255).round()[1, 1].tolist() == [18, 21, 26, 66, 99, 99, 99, 99]  # table K.2


@pytest.mark.parametrize("side", [16, 21])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_s_smooth_copy_is_the_round_trip_but_for_the_softening(monkeypatch, channels, side):
    x = pictures(channels, side)
    near = [(Jpeg(q).smooth(x) - round_trip(x, q)).abs().mean() for q in (90, 50, 10)]
    far = [(x - round_trip(x, q)).abs().mean() for q in (90, 50, 10)]
    assert all(a < b for a, b in zip(near, far, strict=True)), (near, far)
    monkeypatch.setattr(torch, "sin", lambda angle: 2 * (angle - 2 * math.pi * (angle / (2 * math.pi)).round()))
    hard = Jpeg(50).smooth(x).clamp(0, 1)  # the ripple is now all of the rounding
    assert (hard - round_trip(x, 50)).abs().mean() < 0.4 * far[1]


def test_jpeg_s_smooth_copy_has_a_gradient_everywhere_and_is_kind_to_float64():
    x = pictures(3, 16).double().requires_grad_()
    found = torch.autograd.grad(Jpeg(20).smooth(x).square().sum(), x)[0]
    assert found.dtype == torch.float64 and (found.flatten(1).abs() > 0).float().mean() > 0.99
    flat = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Jpeg(50).smooth, (flat,))


def test_softmax_stands_in_for_one_hot_argmax():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), Call(argmax_one_hot), nn.Linear(8, 4))
    assert gradient(substitute(model, {"2": "softmax"})).any()
    with pytest.raises(RuntimeError):
        gradient(model)


def test_a_function_of_one_s_own_and_a_module_by_class():
    model = net(Call(torch.round))
    plain = gradient(substitute(model, {"0": "identity"}))
    assert torch.equal(gradient(substitute(model, {"Call": lambda x: 2 * x})), 2 * plain)


class Inline(nn.Module):
    """Rounding in the model's own forward, in no module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.round(x * 7) / 7)


def test_torch_functions_that_are_called_outside_any_module_get_a_substitute_too():
    model = Inline().eval()
    twin = substitute(model, functions={"round": "identity"})
    assert torch.equal(twin(X), model(X)) and not twin.training
    assert torch.allclose(gradient(twin), gradient(model.inner, torch.round(X * 7) / 7), atol=1e-7)
    assert not gradient(model).any()


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ({"9": "identity"}, "a layer to substitute must be a module's path or class, got '9'"),
        ({"Coll": "identity"}, "did you mean 'Call'"),
        ({"0": "identty"}, "did you mean 'identity'"),
        ({"0": "smooth"}, "a stand-in must be a known one or a function, got 'smooth'"),
    ],
)
def test_unknown_names_are_told(layers, text):
    with pytest.raises(ConfigError, match=text):
        substitute(net(Call(torch.round)), layers)


def test_a_stand_in_of_another_shape_or_for_integers_is_an_error():
    code = Call(lambda x: torch.cat([(x > level).float() for level in (0.3, 0.6)], 1))
    with pytest.raises(ModelError, match=r"a substituted layer's output must be floats of shape \(6, 1, 16, 16\)"):
        gradient(substitute(net(code, inputs=512), {"0": "identity"}))
    with pytest.raises(ModelError, match="int64"):
        gradient(substitute(nn.Sequential(Call(lambda x: x.long()), Call(Tensor.float), net()), {"0": "identity"}))


# --- holes


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_hides_its_gradient_is_named(name):
    assert gradient_holes(net(nn.Identity(), Call(LAYERS[name])), X) == ["1"]


def test_the_defences_and_an_argmax_deep_inside_are_named():
    assert gradient_holes(bit_depth(net()), X) == ["change"]
    assert gradient_holes(jpeg(net()), X) == ["change"]
    deep = nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Sequential(nn.ReLU(), Call(argmax_one_hot)), nn.Linear(8, 4))
    assert gradient_holes(deep, X) == ["2.1"]
    assert gradient_holes(nn.Sequential(Call(lambda x: x.flatten(1).argmax(1)), nn.Embedding(256, 4)), X) == ["0"]
    assert gradient_holes(nn.Sequential(bit_depth(nn.Identity()), net(Call(torch.sign))), X) == ["0.change", "1.0"]


def test_a_hole_in_the_model_s_own_forward_is_named_by_its_class():
    assert gradient_holes(Inline().eval(), X) == ["Inline"]


class Inplace(nn.Module):
    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return x.mul_(scale), x * 0 + 1


class Kinds(nn.Module):
    """Dropout and batch norm, in-place layers, several outputs, a constant branch, an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.act = nn.BatchNorm2d(1), nn.Dropout(), nn.ReLU(inplace=True)
        self.place, self.unused, self.constant = Inplace(), nn.Linear(2, 2), Call(lambda x: torch.ones_like(x))
        self.head = net()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.drop(self.norm(x)))
        return self.head(self.place(x.clone(), scale=2.0)[0] + self.constant(x))


def test_honest_layers_are_not_named_and_the_model_is_left_as_it_was():
    model = Kinds()
    before, state = fingerprint(model), torch.get_rng_state()
    assert gradient_holes(model, X) == []
    assert fingerprint(model) == before and model.training and model.drop.training
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert gradient_holes(net(Call(median)), X) == []


@pytest.mark.parametrize("name", ["digits-standard", "digits-pgd-at", "digits-vit", "digits-mlp"])
def test_the_zoo_s_nets_have_no_holes_and_the_trap_has_one(name):
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    assert gradient_holes(load(name), images) == []
    assert len(gradient_holes(load("digits-trap"), images)) == 1


def test_bridged_finds_and_bridges_what_is_hidden_behind_what():
    model = nn.Sequential(bit_depth(nn.Identity()), net(Call(torch.round), nn.Identity(), Call(torch.sign)))
    twin, names = bridged(model, X)
    assert names == ["0.change", "1.0", "1.2"]
    assert torch.equal(twin(X), model(X)) and gradient(twin).any()


def test_bridged_reaches_functions_outside_any_module():
    model = nn.Sequential(bit_depth(nn.Identity()), Inline()).eval()
    twin, names = bridged(model, X)
    assert names == ["0.change", "round()"]
    assert torch.equal(twin(X), model(X)) and gradient(twin).any()


def test_a_thermometer_code_takes_a_function_of_one_s_own():
    levels = (0.2, 0.4, 0.6, 0.8)
    code = Call(lambda x: torch.cat([(x > level).float() for level in levels], 1))
    model = net(code, inputs=4 * 256)
    assert gradient_holes(model, X) == ["0"]
    twin, names = bridged(model, X)
    assert names == ["comparison()"] and torch.equal(twin(X), model(X)) and gradient(twin).any()
    twin = substitute(model, {"0": lambda x: torch.cat([torch.sigmoid(10 * (x - level)) for level in levels], 1)})
    assert torch.equal(twin(X), model(X)) and gradient(twin).any()


class Hidden(nn.Module):
    """The gradient is that of another class's logits: it is there, and wrong."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        other = logits.roll(1, dims=1)
        return logits.detach() + other - other.detach()


def test_a_gradient_that_is_there_and_wrong_is_bridged_when_asked_thoroughly():
    inner = net()
    model = Hidden(inner).eval()
    assert bridged(model, X)[1] == []
    twin, names = bridged(model, X, thorough=True)
    assert names == ["detach()"] and torch.equal(twin(X), model(X))
    assert torch.allclose(gradient(twin), gradient(inner), atol=1e-6)
    assert not torch.allclose(gradient(model), gradient(inner), atol=1e-3)


@pytest.mark.parametrize(("order", "sign"), [(torch.gt, 1), (torch.le, -1), (lambda a, b: a < b, -1)])
def test_comparisons_that_become_floats_have_the_gradient_of_the_difference(order, sign):
    model = Call(lambda x: order(x.flatten(1), 0.5).float() * 3).eval()
    twin = substitute(model, functions={"comparison": "identity"})
    assert torch.equal(twin(X), model(X))
    want = torch.zeros(6, 256)
    want[:, 0] = 3 * sign
    assert torch.equal(gradient(twin).flatten(1), want)


def quantised(x: Tensor) -> Tensor:
    return (x * 15).to(torch.uint8).float() / 15


HIDERS = {
    "floor division": lambda x: torch.div(x, 0.1, rounding_mode="floor") * 0.1,
    "remainder": lambda x: x - torch.remainder(x, 0.1),
    "cast": quantised,
    "integer arithmetic": lambda x: ((x * 15).to(torch.uint8) + 1) / 15,
    "where": lambda x: torch.where(x > 0.5, 1.0, 0.0),
    "negated where": lambda x: torch.where(~(x > 0.5), 0.0, 1.0),
    "masked_fill": lambda x: torch.zeros_like(x).masked_fill(x > 0.5, 1.0),
    "product": lambda x: (x > 0.5) * torch.ones_like(x),
    "reshaped mask": lambda x: (x > 0.5).flatten(1).view_as(x).float(),
}


class Around(nn.Module):
    """A function of the pixels in the model's own forward."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.inner = function, net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.function(x))


@pytest.mark.parametrize("form", ["module", "exported"])
@pytest.mark.parametrize("name", HIDERS)
def test_every_way_to_hide_a_gradient_is_bridged(name, form):
    model = Around(HIDERS[name]).eval()
    if form == "exported":
        batch = torch.export.Dim("batch", min=1, max=64)
        model = Exported(torch.export.export(model, (X,), dynamic_shapes=({0: batch},)).module(check_guards=False), None)
    twin, names = bridged(model, X)
    assert names and torch.equal(twin(X), model(X))
    ours, wanted = gradient(twin), gradient(net(), HIDERS[name](X))  # up to the width of a step, which is positive
    assert ours.flatten(1).any(1).all() and (ours * wanted >= 0).all()


def test_a_decision_alone_is_bridged_to_its_logits():
    inner = net()
    model = nn.Sequential(inner, Call(lambda out: nn.functional.one_hot(out.argmax(1), 4).float())).eval()
    twin = substitute(model, functions={"argmax": "identity"})
    assert torch.equal(twin(X), model(X)) and torch.equal(gradient(twin), gradient(inner))
    assert gradient_holes(model, X) == ["1"]


def test_bridged_leaves_what_a_stand_in_does_not_fit():
    twin, names = bridged(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), Call(lambda x: x.argmax(1)), nn.Embedding(8, 4)), X)
    assert names == [] and twin(X).shape == (6, 4)


# --- the attack


def count_broken(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many are wrong on the images that PGD left, looked at in the model that was attacked."""
    threat, seeds = ThreatModel.parse("linf(0.1)"), Draws(0, torch.arange(len(x)))
    victim = Victim(model, x, y, threat=threat)
    found = pgd(victim, x, y, threat=threat, seeds=seeds, steps=20, loss="margin", momentum=0.75)
    return int((predict(model, found, width=64).argmax(1) != y).sum())


@pytest.mark.parametrize(
    "make",
    [lambda m: bit_depth(m, bits=3), pytest.param(lambda m: jpeg(m, quality=75), marks=pytest.mark.slow)],
    ids=["bit_depth", "jpeg"],
)
def test_with_substitutes_a_defended_net_falls_to_within_two_points_of_the_undefended_one(make):
    from robench.data._digits import digits

    model, test = load("digits-standard"), digits(split="test")
    x, y = test.images()[:200], test.labels[:200]
    defended = make(model)
    twin, names = bridged(defended, x[:8])
    assert names == ["change"]
    assert count_broken(twin, x, y) >= count_broken(model, x, y) - 4
    assert torch.equal(predict(twin, x, width=64), predict(defended, x, width=64))


def test_without_substitutes_the_rounding_hides_nearly_all():
    from robench.data._digits import digits

    model, test = bit_depth(load("digits-standard")), digits(split="test")
    assert count_broken(model, test.images()[:64], test.labels[:64]) < 10
