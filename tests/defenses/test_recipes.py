"""The recipes against closed forms, slow twins and torch's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses import TABLE_RECIPES
from robench.defenses._adversarial import ascend, divergence, frozen_statistics, pgd_at, trades
from robench.defenses._augmented import augmented, moved
from robench.defenses._distilled import Student, distilled
from robench.defenses.training import RECIPES
from robench.errors import ConfigError, ModelError
from robench.models import fresh
from robench.ops.random import Draws

G = torch.Generator().manual_seed(0)
X = torch.rand(6, 1, 8, 8, generator=G)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
DRAWS = Draws(3, torch.arange(6) * 5)


def linear() -> nn.Module:
    return fresh("mlp(num_classes=3, depth=0, size=8)", seed=1)


def normed() -> nn.Module:
    return fresh("resnet18(num_classes=3, width=2)", seed=1).train()


def pupil(name: str, model: nn.Module) -> nn.Module:
    """The model as a recipe takes it: distillation wants one with a teacher."""
    return Student(model, linear().eval()) if name == "distilled" else model


@pytest.mark.parametrize("name", TABLE_RECIPES)
def test_losses_are_scalars_that_reach_the_weights_and_repeat(name: str) -> None:
    recipe = RECIPES[name].load()
    values = []
    for _ in range(2):
        model = normed()
        loss = recipe(pupil(name, model), X, Y, draws=DRAWS, step=4)
        loss.backward()
        assert loss.ndim == 0 and all(p.grad is not None for p in model.parameters())
        values.append(loss.item())
    assert values[0] == values[1]
    again = recipe(pupil(name, normed()), X, Y, draws=DRAWS, step=5).item()
    assert name in ("standard", "distilled") or again != values[0]


@pytest.mark.parametrize("name", TABLE_RECIPES)
def test_the_search_leaves_mode_gradients_and_one_update_of_statistics(name: str) -> None:
    model = normed()
    model[1][0].norm1.eval()
    RECIPES[name].load()(pupil(name, model), X, Y, draws=DRAWS, step=0)
    assert model.training and not model[1][0].norm1.training
    assert all(p.grad is None for p in model.parameters())
    assert int(model[2][0].norm1.num_batches_tracked) == (2 if name == "trades" else 1)


def test_search_on_a_linear_model_ends_in_the_corner_that_raises_the_loss() -> None:
    """Two classes: the gradient's sign is that of w_other - w_label everywhere, so the corner is known."""
    model = fresh("mlp(num_classes=2, depth=0, size=8)", seed=2)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    weight = model[1].weight
    direction = (weight[1 - y] - weight[y]).sign().reshape(X.shape)
    got = ascend(lambda z: F.cross_entropy(model(z), y), X, X, eps=0.1, steps=10, step_size=0.02)
    assert torch.allclose(got, (X + 0.1 * direction).clamp(0, 1), atol=1e-6)


def test_search_agrees_with_its_slow_twin() -> None:
    model = normed().eval().double()
    x, start = X.double(), (X + 0.3 * torch.rand(X.shape, generator=G)).double()
    want = start.clone()
    want = torch.stack([torch.clamp(torch.clamp(w, min=c - 0.1, max=c + 0.1), 0, 1) for w, c in zip(want, x, strict=True)])
    for _ in range(4):
        for i in range(len(want)):
            z = want[i : i + 1].clone().requires_grad_()
            F.cross_entropy(model(z), Y[i : i + 1]).backward()
            step = want[i : i + 1] + 0.04 * z.grad.sign()
            want[i] = torch.clamp(torch.clamp(step, min=x[i] - 0.1, max=x[i] + 0.1), 0, 1)[0]
    got = ascend(lambda z: F.cross_entropy(model(z), Y), x, start, eps=0.1, steps=4, step_size=0.04)
    assert torch.allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_adversarial_images_stay_in_ball_and_box(steps: int) -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x.flatten(1)[:, :3] * 3

    for recipe in (pgd_at, trades):
        recipe(Watch(), X, Y, draws=DRAWS, step=0, eps=0.2, steps=steps)
    assert all(bool((x - X).abs().max() <= 0.2 + 1e-6) and x.min() >= 0 and x.max() <= 1 for x in seen)
    assert bool((seen[-1] != X).any())


def test_adversarial_training_s_loss_is_above_the_clean_one() -> None:
    model = linear()
    clean = F.cross_entropy(model(X), Y)
    small, large = (pgd_at(model, X, Y, draws=DRAWS, step=0, eps=e) for e in (0.05, 0.1))
    assert clean < small < large
    assert pgd_at(model, X, Y, draws=DRAWS, step=0, eps=0.0).item() == pytest.approx(clean.item(), rel=1e-6)


def test_trades_is_cross_entropy_plus_beta_times_the_divergence() -> None:
    model = linear()
    clean = F.cross_entropy(model(X), Y).item()
    zero, one, six = (trades(model, X, Y, draws=DRAWS, step=0, beta=b).item() for b in (0.0, 1.0, 6.0))
    assert zero == pytest.approx(clean, rel=1e-6) and one > zero
    assert six - zero == pytest.approx(6 * (one - zero), rel=1e-4)


def test_divergence_in_closed_form() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.3, 0.3, 0.4]])
    want = sum(a * math.log(a / b) for a, b in zip(p[0].tolist(), q[0].tolist(), strict=True))
    assert divergence(p.log(), q.log() + 5).item() == pytest.approx(want, rel=1e-5)
    assert divergence(p.log(), p.log()).item() == pytest.approx(0, abs=1e-7)


def test_modes_are_restored_after_an_error() -> None:
    model = normed()
    with pytest.raises(ZeroDivisionError), frozen_statistics(model):
        assert not model.training
        raise ZeroDivisionError
    assert all(m.training for m in model.modules())


def corner() -> Tensor:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 1, 7] = 1
    return image


@pytest.mark.parametrize(("degrees", "place"), [(0, (1, 7)), (90, (1, 1)), (180, (7, 1)), (-90, (7, 7))])
def test_quarter_turns_go_counter_clockwise(degrees: float, place: tuple[int, int]) -> None:
    out = moved(corner(), torch.tensor([float(degrees)]), torch.zeros(1, 2))
    assert out[0, 0][place] == pytest.approx(1, abs=1e-4) and out.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("right", "down"), [(0, 0), (1, 0), (0, 2), (-3, 1)])
def test_whole_shifts_move_pixels_and_leave_black(right: int, down: int) -> None:
    out = moved(corner(), torch.zeros(1), torch.tensor([[float(right), float(down)]]))
    assert out[0, 0, 1 + down, 7 + right].item() == pytest.approx(1, abs=1e-4) if right < 2 else True
    assert out.sum().item() == pytest.approx(1, abs=1e-4)


def test_rotation_happens_before_the_shift_and_keeps_lengths_of_wide_images() -> None:
    image = torch.zeros(1, 1, 21, 41)
    image[0, 0, 10, 26] = 1
    out = moved(image, torch.tensor([90.0]), torch.tensor([[3.0, 1.0]]))
    assert out[0, 0, 10 - 6 + 1, 20 + 3].item() == pytest.approx(1, abs=1e-3)


def test_each_image_gets_its_own_place_whatever_its_batch() -> None:
    model = nn.Flatten()
    first = augmented(model, X, Y, draws=DRAWS, step=0)
    single = [augmented(model, X[i : i + 1], Y[i : i + 1], draws=DRAWS[i : i + 1], step=0) for i in range(6)]
    assert first.item() == pytest.approx(torch.stack(single).mean().item(), rel=1e-5)


def test_augmentation_of_nothing_is_standard_training() -> None:
    model = linear()
    plain = augmented(model, X, Y, draws=DRAWS, step=0, rotation=0.0, shift=0.0, noise=0.0)
    assert plain.item() == pytest.approx(F.cross_entropy(model(X), Y).item(), rel=1e-5)


def test_distillation_is_the_formula_of_its_paper() -> None:
    student, teacher = linear(), fresh("mlp(num_classes=3, depth=1, size=8)", seed=4).eval()
    found = distilled(Student(student, teacher), X, Y, draws=DRAWS, step=0, temperature=3.0, alpha=0.7)
    total = 0.0
    for x, y in zip(X, Y, strict=True):
        own, soft = student(x[None])[0].tolist(), teacher(x[None])[0].tolist()
        p = [math.exp(v / 3) for v in soft]
        q = [math.exp(v / 3) for v in own]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        plain = math.log(sum(math.exp(v) for v in own)) - own[int(y)]
        total += 0.7 * 9 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) + 0.3 * plain
    assert found.item() == pytest.approx(total / len(X), rel=1e-5)
    found.backward()
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training
    assert not [name for name, _ in Student(student, teacher).named_parameters() if "teacher" in name]


def test_distillation_without_weight_on_the_teacher_is_plain_training() -> None:
    model = linear()
    plain = F.cross_entropy(model(X), Y)
    assert torch.equal(distilled(Student(model, normed().eval()), X, Y, draws=DRAWS, step=0, alpha=0.0), plain)
    same = distilled(Student(model, model), X, Y, draws=DRAWS, step=0, alpha=1.0)
    assert abs(same.item()) < 1e-6


def test_distillation_refuses_what_it_cannot_use() -> None:
    for change in ({"temperature": 0.0}, {"alpha": 1.5}, {"alpha": -0.1}):
        with pytest.raises(ConfigError, match="temperature and alpha must be"):
            distilled(Student(linear(), linear()), X, Y, draws=DRAWS, step=0, **change)
    with pytest.raises(ModelError, match="with a teacher"):
        distilled(linear(), X, Y, draws=DRAWS, step=0)


def test_an_l2_ascent_follows_a_linear_loss_to_the_sphere():
    weight = torch.randn(X.shape[1:], generator=torch.Generator().manual_seed(2))
    x = torch.full_like(X, 0.5)
    got = ascend(lambda z: (z * weight).sum(), x, x, eps=0.4, steps=10, norm="l2")
    assert torch.allclose(got, x + 0.4 * weight / weight.norm(), atol=1e-5)


def test_l2_training_looks_within_its_radius():
    model = linear()
    weak, strong = (pgd_at(model, X, Y, draws=DRAWS, step=0, eps=e, norm="l2").item() for e in (0.2, 1.0))
    assert F.cross_entropy(model(X), Y).item() < weak < strong
    with pytest.raises(ConfigError, match="norm"):
        pgd_at(model, X, Y, draws=DRAWS, step=0, norm="l1")
