"""From what a model returns to logits, and which images and models pass the door."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn

import robench
from robench import attacks
from robench.admission import admit, as_module
from robench.errors import DataError, ModelError
from robench.gate import Gate, logits_of
from robench.inference import require_finite_weights, untouched
from robench.models import fresh
from robench.ops import losses

THREAT = "linf(0.05)"
LOGITS = torch.tensor([[3.0, 1.0, -2.0, 0.5], [0.0, 4.0, 1.0, 2.0]])
Y = torch.tensor([0, 1])


class Two(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor | None


@pytest.mark.parametrize(
    "outputs",
    [
        LOGITS,
        (LOGITS, LOGITS.repeat(1, 2)),
        [LOGITS, None],
        Two(LOGITS, None),
        {"logits": LOGITS, "hidden": LOGITS[:, :2]},
        {"a": LOGITS, "n": 3},
        UserDict(logits=LOGITS),
        SimpleNamespace(logits=LOGITS),
        LOGITS[:, :, None, None],
        LOGITS.double(),
    ],
    ids=["tensor", "tuple", "list", "named tuple", "dict", "dict of one", "mapping", "attribute", "sides", "double"],
)
def test_logits_are_found(outputs) -> None:
    assert torch.equal(logits_of(outputs, 2), LOGITS) and logits_of(outputs, 2).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_flow_through_other_types(dtype) -> None:
    leaf = LOGITS.to(dtype).requires_grad_(True)
    logits_of({"logits": leaf}, 2)[0, 1].backward()
    assert leaf.grad is not None and leaf.grad[0].tolist() == [0, 1, 0, 0] and leaf.grad.dtype == dtype


@pytest.mark.parametrize(
    "outputs",
    [
        *(None, 1.0, "x", [], {}, [[1.0, 2.0]], (LOGITS, LOGITS[:, :2]), (LOGITS, LOGITS), {"a": LOGITS, "b": LOGITS}),
        *(LOGITS[:, 0], LOGITS[:, :1], LOGITS.long(), LOGITS.to(torch.complex64), LOGITS[:1], LOGITS[:, None]),
    ],
)
def test_what_is_no_logits_is_refused_with_what_came(outputs) -> None:
    with pytest.raises(ModelError, match=r"the model's outputs must be logits") as caught:
        logits_of(outputs, 2)
    assert "\n" not in str(caught.value)


def test_masked_classes_are_never_predicted_and_leave_losses_finite() -> None:
    mask = torch.tensor([0.0, 0.0, -torch.inf, 0.0])
    leaf = (LOGITS * 1000).requires_grad_(True)
    found = logits_of(leaf + mask, 2)
    assert found.argmax(1).tolist() == [0, 1] and found.argmin(1).tolist() == [2, 2]
    assert torch.equal(found.softmax(1), (leaf + mask).softmax(1))
    for loss in (losses.cross_entropy, losses.margin, losses.dlr, losses.scaled_cross_entropy):
        (gradient,) = torch.autograd.grad(loss(logits_of(leaf + mask, 2), Y).sum(), leaf)
        assert gradient.isfinite().all() and (gradient[:, 2] == 0).all()
    assert torch.equal(losses.margin(found, Y), losses.margin(leaf + mask, Y))
    assert (losses.margin(found, torch.tensor([2, 2])) < 0).all(), "a masked label is a mistake"


def test_a_row_without_a_finite_logit_stays_damaged() -> None:
    assert not logits_of(torch.full((2, 3), -torch.inf), 2).isfinite().any()
    assert logits_of(torch.tensor([[torch.nan, -torch.inf, 0.0]]), 1).isnan().any()


def test_a_gate_gives_copies_and_keeps_the_order_in_memory() -> None:
    seen = []

    def model(x):
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return x.mul_(-1).flatten(1)

    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    kept = x.clone()
    assert torch.equal(Gate(model)(x), -kept.flatten(1)) and torch.equal(x, kept) and seen == [True]


def test_a_gated_model_can_be_traced_and_exported() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 3)

        def forward(self, x):
            return self.fc(x.sub_(0.1).flatten(1)), x

    gate, x = Gate(Pair()).eval(), torch.rand(4, 1, 4, 4)
    assert [n.target for n in torch.fx.Tracer().trace(gate).nodes if n.op == "call_module"] == ["net.fc"]
    program = torch.export.export(gate, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    assert torch.allclose(program.module()(x[:3]), gate(x[:3]))


@pytest.mark.parametrize(("least", "most"), [(1, 3), (3, 3), (2, 5), (4, None)])
def test_a_gate_asks_in_parts_of_the_right_sizes(least, most) -> None:
    sizes = []

    def model(x):
        sizes.append(len(x))
        return x * 2

    for count in range(1, 12):
        x = torch.rand(count, 4)
        assert torch.equal(Gate(model, least=least, most=most)(x), x * 2)
    assert min(sizes) >= least and max(sizes) <= (most or 11)


def test_modules_behind_a_function_are_held() -> None:
    net = nn.BatchNorm1d(4)

    class Holder:
        def __init__(self) -> None:
            self.net = net

        def ask(self, x):
            return self.net(x)

    for function in (lambda x: net(x), Holder().ask, net.forward):
        assert [m for m in as_module(function).modules() if m is net]
        with untouched(as_module(function)):
            assert not net.training
        assert net.training


def test_tensors_behind_a_function_are_held_and_compared() -> None:
    weight = torch.rand(16, 3)

    def learning(x):
        weight.add_(1e-3)
        return x.flatten(1) @ weight

    assert [b for b in as_module(learning).buffers() if torch.equal(b, weight)]
    with pytest.raises(ModelError, match="changed by the first pass"):
        admit(as_module(learning), torch.rand(2, 1, 4, 4), width=4)


def test_a_plain_model_comes_back_as_it_is() -> None:
    net = fresh("small_cnn(width=4)", seed=0).eval()
    admitted = admit(net, torch.rand(5, 1, 32, 32), width=16)
    assert admitted.net is net and not admitted.notes and admitted.logits.shape == (5, 10)


def test_generators_and_modes_stay_as_they_are() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    with torch.no_grad():
        attacks.pgd(
            net, torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), Y[[0, 1, 0]], threat=THREAT, steps=1
        )
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())


def test_infinite_buffers_are_fine_and_nan_or_infinite_weights_are_not() -> None:
    net = nn.Linear(4, 3)
    net.register_buffer("mask", torch.full((3,), -torch.inf))
    require_finite_weights(net)
    net.register_buffer("mask", torch.full((3,), torch.nan))
    with pytest.raises(ModelError, match="'mask'"):
        require_finite_weights(net)
    net.register_buffer("mask", torch.zeros(3))
    with torch.no_grad():
        net.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match="'weight'"):
        require_finite_weights(net)


class HiddenBatchNorm(nn.Module):
    """Normalises by the batch, and moves its averages, whatever mode it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(nn.functional.batch_norm(x, self.mean, torch.ones(1), training=True).flatten(1))


class Replacing(nn.Module):
    """Puts another tensor in the place of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        self.calls = self.calls + 1
        return self.fc(x.flatten(1))


class Refreshing(Replacing):
    """Writes the same values again at every pass, which is no change."""

    def forward(self, x):
        self.calls = torch.zeros(())
        return self.fc(x.flatten(1))


class Learning(Replacing):
    """Moves a weight."""

    def forward(self, x):
        with torch.no_grad():
            self.fc.weight.add_(1e-3)
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("kind", [HiddenBatchNorm, Replacing, Learning])
def test_a_state_that_changes_is_noticed_after_the_first_pass(kind) -> None:
    calls, net = [], kind().eval()
    net.fc.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ModelError, match="changed by the first pass"):
        admit(net, torch.rand(4, 1, 4, 4), width=8)
    assert len(calls) <= 2
    assert admit(Refreshing().eval(), torch.rand(4, 1, 4, 4), width=8).logits.shape == (4, 3)


def odd_images(x: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        made = x.clone()
    apart = torch.zeros(len(x), 1, 8, 8)
    apart[:, :, ::2, ::2] = x
    return {
        "requires grad": x.clone().requires_grad_(True),
        "with history": x.clone().requires_grad_(True) * 1.0,
        "inference": made,
        "strided": apart[:, :, ::2, ::2],
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "expanded": x,
    }


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(1)


WAYS = {
    "evaluate": lambda m, x, y: robench.evaluate(m, x, y, threat=THREAT, attacks=["pgd(steps=3)"]).x_adv,
    "pgd": lambda m, x, y: attacks.pgd(m, x, y, threat=THREAT, steps=3),
    "square": lambda m, x, y: attacks.square(m, x, y, threat=THREAT, queries=5),
    "spatial": lambda m, x, y: attacks.spatial_grid(m, x, y, angles=(0.0, 10.0), shifts=(0.0,)).images,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["requires grad", "with history", "inference", "strided", "channels last", "expanded"])
def test_odd_images_are_taken_as_plain_ones(name, way, small) -> None:
    net, x, y = small
    given = odd_images(x)[name]
    kept = given.detach().clone()
    found = WAYS[way](net, given, y)
    assert torch.equal(found, WAYS[way](net, x, y)) and not found.requires_grad and not found.is_inference()
    assert torch.equal(given.detach(), kept)


@pytest.mark.parametrize("way", WAYS)
def test_the_callers_inference_mode_is_left_and_restored(way, small) -> None:
    net, x, y = small
    with torch.inference_mode():
        found = WAYS[way](net, x.clone(), y.clone())
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found, WAYS[way](net, x, y))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x.double(), "float32"),
        (lambda x: (x * 255).byte(), "255"),
        (lambda x: x * 255, r"\[0, 1\]"),
        (lambda x: x.numpy(), "ndarray|torch.Tensor"),
        (lambda x: x[:0], "."),
    ],
)
def test_images_of_another_kind_are_refused(change, match, way, small) -> None:
    net, x, y = small
    with pytest.raises(DataError, match=match):
        WAYS[way](net, change(x), y)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", [lambda y: y.float(), lambda y: y.tolist(), lambda y: y + 9, lambda y: y[:-1]])
def test_labels_of_another_kind_are_refused(change, way, small) -> None:
    net, x, y = small
    with pytest.raises(DataError, match="labels"):
        WAYS[way](net, x, change(y))


def test_a_surrogate_passes_the_same_door(small) -> None:
    net, x, y = small
    wrapped = attacks.transfer(net, x, y, threat=THREAT, surrogate=Gate(lambda v: (net(v.mul_(1.0)),)), steps=2)
    assert torch.equal(wrapped, attacks.transfer(net, x, y, threat=THREAT, surrogate=net, steps=2))


def test_a_module_that_takes_another_size_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"able to take images \(64, 1, 5, 5\).*check shape"):
        attacks.pgd(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(2, 1, 5, 5), Y, threat=THREAT)


@pytest.mark.parametrize("model", [None, 3, "net.pt", torch.rand(3)])
def test_what_is_no_model_is_refused(model, small) -> None:
    with pytest.raises(ModelError, match="callable"):
        robench.evaluate(model, *small[1:], threat=THREAT)
