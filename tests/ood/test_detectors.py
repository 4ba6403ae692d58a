from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import nn

from robench.errors import DataError, NoGradientError
from robench.metrics.ood import auroc
from robench.ood import TABLE
from robench.ood.outputs import Head, Known, Seen, linear_head, missing
from robench.registry import Table
from robench.spec import Ref

DETECTORS = Table("detectors", TABLE)
CLASSES, SIZE = 4, 12


def scorer(name: str, known: Known):
    ref = DETECTORS.resolve(Ref.parse(name))
    return DETECTORS[ref.name].load()(known, **ref.kwargs)


class Toy(nn.Module):
    """Images (N, 1, 1, D) whose features are themselves, and a linear layer that knows the class means."""

    def __init__(self, means: torch.Tensor) -> None:
        super().__init__()
        self.fc = nn.Linear(means.shape[1], len(means))
        self.fc.weight.data = means.clone()
        self.fc.bias.data = -means.square().sum(1) / 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1))


def clusters(n: int, *, seed: int, labels: torch.Tensor | None = None):
    """Class clusters along the first axes, at 3; ``labels`` of the caller's, else drawn."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (n,), generator=g) if labels is None else labels
    x = 0.4 * torch.randn(n, SIZE, generator=g) + 3 * torch.eye(CLASSES, SIZE)[y]
    return x, y


@pytest.fixture(scope="module")
def toy():
    net = Toy(3 * torch.eye(CLASSES, SIZE)).eval()
    x, y = clusters(200, seed=0)
    return net, Known(seen(net, x), y, head=linear_head(net, seen(net, x)), net=net, width=16)


def seen(net: nn.Module, x: torch.Tensor) -> Seen:
    with torch.no_grad():
        return Seen(net(x[:, None, None]), x, x[:, None, None])


def area(score, inside: Seen, outside: Seen) -> float:
    a, b = score(inside), score(outside)
    return auroc(pd.DataFrame({"score": [*a.tolist(), *b.tolist()], "is_id": [True] * len(a) + [False] * len(b)})).value


@pytest.mark.parametrize("name", TABLE)
def test_each_detector_tells_far_points_from_its_own_on_a_toy(name, toy):
    net, known = toy
    inside = seen(net, clusters(120, seed=1)[0])
    g = torch.Generator().manual_seed(2)
    outside = seen(net, 0.9 * torch.randn(120, SIZE, generator=g))
    score = scorer(name, known)
    assert score(inside).shape == (120,) and score(inside).dtype == torch.float64
    assert area(score, inside, outside) > {"knn": 0.75, "react": 0.55}.get(name, 0.85)
    assert DETECTORS[name].facts["needs"] in ("logits", "features", "head", "gradient")


@pytest.mark.parametrize("name", TABLE)
def test_a_constant_model_is_chance_never_perfect(name):
    net = Toy(torch.zeros(CLASSES, SIZE)).eval()
    held = torch.full((60, SIZE), 0.3)
    constant = Seen(seen(net, held).logits, held, torch.rand(60, 1, 1, SIZE))
    known = Known(constant, torch.arange(60) % CLASSES, head=linear_head(net, constant), net=net, width=16)
    other = Seen(constant.logits[:41], held[:41], torch.rand(41, 1, 1, SIZE))
    assert area(scorer(name, known), constant, other) == 0.5


@pytest.mark.parametrize("name", TABLE)
def test_scores_do_not_depend_on_the_company(name, toy):
    net, known = toy
    score, x = scorer(name, known), clusters(45, seed=3)[0]
    whole = score(seen(net, x))
    torch.testing.assert_close(torch.cat([score(seen(net, p)) for p in x.split(7)]), whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", TABLE)
def test_outputs_that_are_nan_give_nan_scores_not_good_ones(name, toy):
    net, known = toy
    x = clusters(5, seed=3)[0]
    x[2] = math.nan
    found = scorer(name, known)(seen(net, x))
    assert found.isnan().tolist() == [False, False, True, False, False]


def test_scores_of_the_logits_are_their_closed_forms(toy):
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    given = Seen(logits, torch.zeros(2, 0))
    known = toy[1]
    assert scorer("msp", known)(given).tolist() == pytest.approx([0.75, 0.5])
    assert scorer("max_logit", known)(given).tolist() == pytest.approx([math.log(3), 2])
    assert scorer("energy", known)(given).tolist() == pytest.approx([math.log(4), 2 + math.log(2)])
    hot = 2 * np.log(np.exp(logits.numpy() / 2).sum(1))
    assert scorer("energy(temperature=2.0)", known)(given).tolist() == pytest.approx(hot.tolist())


def test_odin_steps_along_the_sign_of_the_gradient(toy):
    net, known = toy
    given = seen(net, clusters(20, seed=4)[0])
    logits = given.logits.double()
    assert scorer("odin(eps=0.0)", known)(given).tolist() == pytest.approx((logits / 1000).softmax(1).amax(1).tolist())
    weight = net.fc.weight.double()
    p, top = (logits / 1000).softmax(1), logits.argmax(1)
    moved = given.features.double() + 0.5 * (weight[top] - p @ weight).sign()
    expected = ((moved @ weight.T + net.fc.bias.double()) / 1000).softmax(1).amax(1)
    assert scorer("odin(eps=0.5)", known)(given).tolist() == pytest.approx(expected.tolist(), rel=1e-7)


def test_odin_says_when_there_is_no_gradient(toy):
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach().flatten(1)[:, :CLASSES]

    net, x = Cut(), clusters(3, seed=0)[0]
    with pytest.raises(NoGradientError, match="gradient"):
        scorer("odin", Known(seen(net, x), torch.zeros(3).long(), net=net))(seen(net, x))
    with pytest.raises(DataError, match="images"):
        scorer("odin", toy[1])(Seen(torch.zeros(1, CLASSES), torch.zeros(1, SIZE)))


@pytest.mark.parametrize("shrinkage", [None, 0.3])
def test_mahalanobis_equals_scikit_learn(toy, shrinkage):
    net, known = toy
    features, labels = known.train.features.double().numpy(), known.labels.numpy()
    means = np.stack([features[labels == c].mean(0) for c in range(CLASSES)])
    centred = features - means[labels]
    theirs = EmpiricalCovariance(assume_centered=True).fit(centred)
    weight = LedoitWolf(assume_centered=True).fit(centred).shrinkage_ if shrinkage is None else shrinkage
    covariance = (1 - weight) * theirs.covariance_ + weight * np.trace(theirs.covariance_) / SIZE * np.eye(SIZE)
    theirs.covariance_, theirs.precision_ = covariance, np.linalg.inv(covariance)
    points = clusters(30, seed=5)[0]
    expected = []
    for mean in means:
        theirs.location_ = mean
        expected.append(theirs.mahalanobis(points.double().numpy()))
    found = scorer(f"mahalanobis(shrinkage={shrinkage})", known)(seen(net, points))
    assert found.tolist() == pytest.approx((-np.min(expected, axis=0)).tolist())


def test_mahalanobis_stands_a_singular_covariance_few_images_and_absent_classes(toy):
    net = toy[0]
    x, y = clusters(5, seed=6, labels=torch.tensor([0, 0, 2, 2, 2]))
    x[:, 7:] = 0
    found = scorer("mahalanobis", Known(seen(net, x), y))(seen(net, clusters(9, seed=7)[0]))
    assert found.isfinite().all() and (found < 0).all()
    alone = scorer("mahalanobis", Known(seen(net, x[:1]), y[:1]))(seen(net, x))
    assert alone.tolist() == [0] * 5


@pytest.mark.parametrize("k", [1, 7, 50, 200, 1000])
def test_knn_equals_scikit_learn_and_more_neighbours_than_images_are_all(toy, k):
    net, known = toy
    points = clusters(30, seed=8)[0]
    bank, scaled = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (known.train.features.numpy(), points.numpy()))
    near = NearestNeighbors(n_neighbors=min(k, 200)).fit(bank.astype(np.float64))
    expected = -near.kneighbors(scaled.astype(np.float64))[0][:, -1]
    assert scorer(f"knn(k={k})", known)(seen(net, points)).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_knn_of_a_zero_feature_and_of_an_image_it_knows(toy):
    net, known = toy
    points = torch.cat([torch.zeros(1, SIZE), known.train.features[:1]])
    assert scorer("knn(k=1)", known)(seen(net, points)).tolist() == pytest.approx([-1.0, 0.0], abs=1e-6)


def test_react_cuts_features_at_the_percentile(toy):
    net, known = toy
    points = clusters(30, seed=9)[0]
    ceiling = np.percentile(known.train.features.numpy(), 70)
    logits = np.minimum(points.numpy(), ceiling) @ net.fc.weight.detach().numpy().T + net.fc.bias.detach().numpy()
    found = scorer("react(percentile=70.0)", known)(seen(net, points))
    assert found.tolist() == pytest.approx(np.log(np.exp(logits).sum(1)).tolist(), rel=1e-4)
    given = seen(net, points)
    energy = scorer("energy", known)(given)
    assert scorer("react(percentile=100.0)", known)(given) == pytest.approx(energy, rel=0.05)


def test_vim_equals_a_principal_component_analysis_about_its_origin(toy):
    net, known = toy
    weight, bias = (p.detach().double().numpy() for p in (net.fc.weight, net.fc.bias))
    origin = -np.linalg.pinv(weight) @ bias
    x = known.train.features.double().numpy() - origin
    both = np.concatenate([x, -x])  # mirrored, so that scikit-learn's centring is at the origin
    kept = PCA(n_components=SIZE // 2).fit(both).components_
    points = clusters(30, seed=10)[0]

    def outside(rows):
        return np.linalg.norm(rows - rows @ kept.T @ kept, axis=1)

    alpha = known.train.logits.double().amax(1).sum().item() / outside(x).sum()
    given = seen(net, points)
    energy = given.logits.double().logsumexp(1).numpy()
    expected = energy - alpha * outside(points.double().numpy() - origin)
    assert scorer("vim", known)(given).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("dim", [1, SIZE - 1, SIZE, 10 * SIZE])
def test_vim_stands_more_dimensions_than_features(toy, dim):
    net, known = toy
    assert scorer(f"vim(dim={dim})", known)(seen(net, clusters(9, seed=7)[0])).isfinite().all()


def test_the_head_is_found_where_it_makes_the_logits_and_only_there(toy):
    net, known = toy
    given = known.train
    head = linear_head(nn.Sequential(nn.Linear(SIZE, CLASSES), net), given)
    assert torch.equal(head.weight, net.fc.weight.double())
    torch.testing.assert_close(head(given.features).float(), given.logits)
    assert linear_head(nn.Linear(SIZE, CLASSES), given) is None
    assert linear_head(nn.Identity(), given) is None
    assert linear_head(net, Seen(2 * given.logits, given.features)) is None
    assert linear_head(net, Seen(given.logits[:0], given.features[:0])) is None
    bare = nn.Linear(SIZE, CLASSES, bias=False)
    assert torch.equal(linear_head(bare, Seen(bare(given.features), given.features)).bias, torch.zeros(CLASSES).double())


def test_what_a_model_lacks_is_said(toy):
    _, known = toy
    blind = Known(Seen(known.train.logits, known.train.features[:, :0]), known.labels)
    assert [bool(missing(n, blind)) for n in ("logits", "features", "head", "gradient")] == [False, True, True, True]
    assert [missing(n, known) for n in ("logits", "features", "head", "gradient")] == [""] * 4
    headless = Known(known.train, known.labels)
    assert "logits" in missing("head", headless) and not missing("features", headless)
    broken = Known(Seen(known.train.logits, known.train.features * math.nan), known.labels, head=known.head)
    assert "not finite" in missing("features", broken)
    assert isinstance(known.head, Head)
