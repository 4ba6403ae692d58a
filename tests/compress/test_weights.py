"""Weights on grids, their packed file, and 16-bit floats."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from robench.compress._half import bf16, fp16
from robench.compress._weights import int4_weights, int8_weights
from robench.compress.packing import Grid, pack, packed_bits, packed_files, unpack
from robench.errors import ConfigError, ModelError
from robench.models import Normalised, fresh

X = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def net(arch="small_cnn(num_classes=3, width=5, size=16)"):
    return Normalised(fresh(arch, seed=0), mean=(0.4,), std=(0.3,)).eval()


def layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def slow_grid(weight, bits, group):
    """Rounding by a loop over outputs and groups."""
    top, found = 2 ** (bits - 1) - 1, torch.empty_like(weight)
    for source, out in zip(weight.flatten(1), found.flatten(1), strict=True):
        size = group or len(source)
        for start in range(0, len(source), size):
            part = source[start : start + size]
            peak = part.abs().max()
            scale = peak / top if peak > 0 else torch.tensor(1.0)
            out[start : start + size] = (part / scale).round().clamp(-top, top) * scale
    return found


@pytest.mark.parametrize(("make", "bits", "group"), [(int8_weights, 8, 0), (int4_weights, 4, 32),
                                                    (lambda m: int4_weights(m, group=7), 4, 7)])  # fmt: skip
def test_weights_lie_on_the_grid_of_a_loop(make, bits, group):
    model = net()
    before = copy.deepcopy(model.state_dict())
    rounded = make(model)
    for ours, source in zip(layers(rounded), layers(model), strict=True):
        assert torch.equal(ours.weight, slow_grid(source.weight.detach(), bits, group))
        assert torch.equal(ours.bias, source.bias)
        assert all(len(row.unique()) <= 2**bits - 1 for row in Grid(bits, group).encode(source.weight)[0].flatten(1))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert ((rounded(X) - model(X)).abs().max() < 1.0) and not torch.equal(rounded(X), model(X))


@pytest.mark.parametrize(
    "arch", ["small_cnn(num_classes=3, width=5, size=16)", "vit(num_classes=3, size=16, dim=12)", "mlp(size=16)"]
)
@pytest.mark.parametrize("make", [int8_weights, int4_weights, lambda m: int4_weights(m, group=0)])
def test_the_packed_file_unpacks_to_the_same_weights(arch, make):
    rounded = make(net(arch))
    content = save(pack(rounded))
    assert packed_files(rounded) == {"model.safetensors": len(content)}
    state = unpack(load(content), rounded)
    assert list(state) and set(state) == set(rounded.state_dict())
    assert all(torch.equal(state[k], v) for k, v in rounded.state_dict().items())
    fresh_copy = copy.deepcopy(rounded)
    fresh_copy.load_state_dict(state)
    assert torch.equal(fresh_copy(X), rounded(X))


def test_packed_bytes_are_codes_scales_and_the_rest():
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    eight, four = pack(int8_weights(model)), pack(int4_weights(model))
    assert {k: v.dtype for k, v in eight.items()} == {
        "1.weight#codes": torch.int8, "1.weight#scales": torch.float32, "1.bias": torch.float32,
    }  # fmt: skip
    assert sum(v.numel() * v.element_size() for v in eight.values()) == 2560 + 40 + 40
    assert sum(v.numel() * v.element_size() for v in four.values()) == 1280 + 10 * 8 * 4 + 40
    assert packed_bits(int4_weights(model)) == {"1.weight": 4} and packed_files(model) == {}
    odd = nn.Linear(3, 3)
    assert pack(int4_weights(odd))["weight#codes"].shape == (5,)


def test_weights_changed_after_rounding_cannot_be_packed():
    rounded = int8_weights(net())
    with torch.no_grad():
        layers(rounded)[0].weight.mul_(1.01)
    with pytest.raises(ModelError, match="as they were rounded"):
        pack(rounded)


def test_gradients_reach_the_input_and_zero_rows_stay_zero():
    rounded = int4_weights(net())
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(rounded(x).sum(), x)[0].abs().sum() > 0
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight[0] = 0.0
    assert torch.equal(int8_weights(layer).weight[0], torch.zeros(4))


def test_what_cannot_be_rounded_is_refused():
    with pytest.raises(ConfigError, match="group must be"):
        int4_weights(net(), group=-1)
    broken = net()
    with torch.no_grad():
        layers(broken)[0].weight[0] = float("nan")
    with pytest.raises(ModelError, match="weights to quantise must be finite"):
        int8_weights(broken)
    with pytest.raises(ModelError, match="Conv2d or Linear"):
        int8_weights(nn.Flatten())


@pytest.mark.parametrize(("make", "dtype", "tolerance"), [(fp16, torch.float16, 5e-3), (bf16, torch.bfloat16, 5e-2)])
def test_sixteen_bits_hold_the_weights_and_give_float32_logits(make, dtype, tolerance):
    model = net()
    low = make(model, calibration=X)
    assert {p.dtype for p in low.parameters()} == {dtype} and {b.dtype for b in low.buffers()} == {dtype}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    logits = low(X)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model(X), rtol=0, atol=tolerance)
    by_hand = copy.deepcopy(model).to(dtype)(X.to(dtype)).float()
    assert torch.equal(logits, by_hand)
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(low(x).sum(), x)[0].abs().sum() > 0


class Stubborn(nn.Module):
    """A model that makes float32 numbers of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 2)

    def forward(self, x):
        return self.layer(x.flatten(1).float())


def test_a_model_that_cannot_run_in_sixteen_bits_is_refused_with_a_remedy():
    with pytest.raises(ModelError, match=r"able to run in it on cpu, got .*; try bf16 or int8_weights"):
        fp16(Stubborn(), calibration=X)
    big = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with torch.no_grad():
        big[1].weight.fill_(1e4)
    with pytest.raises(ModelError, match="logits in fp16 must be finite"):
        fp16(big, calibration=X)
    assert bf16(big, calibration=X)(X).isfinite().all()
