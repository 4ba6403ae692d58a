"""Patches: they touch only their square, reach a linear model's optimum there, and each image's depends on no other."""

import pytest
import torch
from torch import nn

from robench.attacks._patch import pasted, patch_images, patch_universal
from robench.errors import ConfigError
from robench.ops.random import Draws


def test_pasting_replaces_the_square_and_nothing_else():
    x, patch = torch.rand(3, 2, 6, 7), torch.rand(3, 2, 3, 3)
    corner = torch.tensor([[0, 0], [3, 4], [1, 2]])
    expected = x.clone()
    for i, (top, left) in enumerate(corner.tolist()):
        expected[i, :, top : top + 3, left : left + 3] = patch[i]
    assert torch.equal(pasted(x, patch, corner), expected)


def test_a_patch_of_its_own_reaches_the_optimum_of_a_linear_model():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(2, 36, generator=generator))
        net[1].bias.copy_(torch.tensor([100.0, 0.0]))
    x, y, seeds = torch.rand(5, 1, 6, 6, generator=generator), torch.zeros(5, dtype=torch.int64), Draws(0, torch.arange(5))
    found = patch_images(net, x, y, seeds=seeds, size=3, steps=30)
    changed, edge = found != x, (net[1].weight[1] > net[1].weight[0]).float().view(6, 6).expand_as(x)
    assert (changed.flatten(1).sum(1) == 9).all()
    assert torch.equal(found, torch.where(changed, edge, x))


def test_company_changes_no_byte_and_patches_break(net, held_out):
    x, y, ids = (part[:40] for part in held_out)
    whole = patch_images(net, x, y, seeds=Draws(0, ids), size=6, steps=30)
    parts = [patch_images(net, x[r], y[r], seeds=Draws(0, ids[r]), size=6, steps=30) for r in torch.arange(40).split(7)]
    assert torch.equal(torch.cat(parts), whole)
    assert ((whole != x).flatten(1).sum(1) <= 36).all()
    assert (net(whole).argmax(1) != y).sum() >= 20


def test_one_patch_for_all_breaks_images_it_was_not_made_on(net, digits, held_out):
    patch = patch_universal(net, digits[0][:100], digits[1][:100], seeds=Draws(0, torch.arange(100)), size=6, steps=40)
    x, y, _ = held_out
    corner = torch.full((len(x), 2), 5)

    def wrong(one):
        return (net(pasted(x, one.expand(len(x), -1, -1, -1), corner)).argmax(1) != y).sum()

    assert patch.shape == (1, 6, 6) and patch.min() >= 0 and patch.max() <= 1
    assert wrong(patch) > wrong(torch.full_like(patch, 0.5))


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 17}, {"size": 4, "steps": 0}, {"size": 4, "rate": 0.0}])
def test_a_patch_that_cannot_be_is_refused(net, held_out, options):
    x, y, ids = (part[:2] for part in held_out)
    for function in (patch_images, patch_universal):
        with pytest.raises(ConfigError, match=r"a patch's side|steps and rate"):
            function(net, x, y, seeds=Draws(0, ids), **options)
