"""Every architecture of the table: shapes, published sizes, and independent forward passes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robench.errors import ConfigError
from robench.models import TABLE, fresh
from robench.models._vit import Attention
from robench.models.weights import ARCHITECTURES

SMALL = {"resnet18": {"width": 4}, "wrn": {"depth": 10, "width": 1}}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def made(name: str, **args: object) -> nn.Module:
    return ARCHITECTURES[name].load()(**{**SMALL.get(name, {}), **args})


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_one_column_per_class_and_gradients_reach_all_weights(name: str, channels: int) -> None:
    model = made(name, in_channels=channels, num_classes=7)
    logits = model(torch.rand(2, channels, 32, 32))
    assert logits.shape == (2, 7) and bool(logits.isfinite().all())
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("name", TABLE)
def test_an_image_s_logits_do_not_depend_on_its_batch(name: str) -> None:
    model = made(name).eval()
    x = torch.rand(6, 1, 32, 32)
    assert torch.allclose(model(x)[2:4], model(x[2:4]), atol=1e-5)


def test_small_cnn_stays_under_a_million_multiply_adds() -> None:
    model = made("small_cnn")
    macs = 0

    def count(module: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal macs
        per_output = module.weight[0].numel()
        macs += per_output * out[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model(torch.rand(1, 1, 32, 32))
    assert macs == 9 * 16 * 256 + 9 * 16 * 32 * 64 + 9 * 32 * 64 * 16 + 1024 * 10 < 1_000_000


def test_published_sizes() -> None:
    """WRN-28-10 has 36.5 million parameters (Zagoruyko & Komodakis, table 4); WRN-40-1 has 0.6, WRN-40-2 2.2 million."""
    wrn = ARCHITECTURES["wrn"].load()
    with torch.device("meta"):
        assert round(parameters(wrn(depth=28, width=10, in_channels=3)) / 1e6, 1) == 36.5
        assert round(parameters(wrn(depth=40, width=1, in_channels=3)) / 1e6, 1) == 0.6
        assert round(parameters(wrn(depth=40, width=2, in_channels=3)) / 1e6, 1) == 2.2
        resnet = ARCHITECTURES["resnet18"].load()(in_channels=3)
    assert round(parameters(resnet) / 1e6, 1) == 11.2
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in resnet.modules()) == 17


def test_vit_has_sixteen_tokens_and_its_order_matters_once_positions_are_learnt() -> None:
    model = made("vit").eval()
    assert model.position.shape == (1, 16, 48)
    x = torch.rand(1, 1, 32, 32)
    moved = torch.cat([x[..., 8:], x[..., :8]], dim=-1)
    assert torch.allclose(model(x), model(moved), atol=1e-5)
    nn.init.normal_(model.position)
    assert not torch.allclose(model(x), model(moved), atol=1e-3)


def test_attention_agrees_with_torch_s_own_multihead_attention() -> None:
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        }
    )  # fmt: skip
    x = torch.randn(2, 5, 12)
    assert torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-6)


def test_residual_block_without_branch_is_the_identity() -> None:
    from robench.models._residual import PreActBlock

    block = PreActBlock(4, 4, 1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_levels_round_in_eval_and_pass_gradients_in_training_only() -> None:
    net = made("quantised_cnn", levels=3)
    rounding = net[0]
    x = torch.tensor([0.0, 0.2, 0.3, 0.7, 0.8, 1.0], requires_grad=True)
    want = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    for mode, slope in ((True, 1.0), (False, 0.0)):
        rounding.train(mode)
        assert torch.allclose(rounding(x), want)
        (gradient,) = torch.autograd.grad(rounding(x).sum(), x)
        assert torch.equal(gradient, torch.full_like(x, slope))


@pytest.mark.parametrize(
    ("ref", "part"),
    [("wrn(depth=27)", "6 k + 4"), ("vit(dim=50)", "multiple of heads"), ("vit(size=28)", "multiple of patch"),
     ("small_cnn(wdith=3)", "did you mean 'width'")],
)  # fmt: skip
def test_impossible_arguments_are_told(ref: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part.replace("+", r"\+")):
        fresh(ref, seed=0)


def test_mlp_of_depth_zero_is_linear() -> None:
    model = made("mlp", depth=0)
    x = torch.rand(3, 1, 32, 32)
    assert torch.allclose(model(x), F.linear(x.flatten(1), model[1].weight, model[1].bias))


def test_listing_names_imports_no_torch() -> None:
    code = "import sys, robench.models, robench.defenses, robench.zoo; robench.zoo.ZOO; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
