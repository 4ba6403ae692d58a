"""Planted cheats: whatever an attack hands in, the judge decides on the original model."""

import copy
import math

import pytest
import torch
from torch import nn

from robench.errors import ConfigError
from robench.judge import judge, judge_repeatedly
from robench.ops.norms import distance
from robench.spec import ThreatModel

THREAT = ThreatModel.parse("linf(0.1)")


class Threshold(nn.Module):
    """Class 0 where the mean is below ``level``."""

    def __init__(self, level=0.5):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([self.level - mean, mean - self.level], 1)


def clean(value=0.3, count=8):
    return torch.full((count, 1, 4, 4), value), torch.zeros(count, dtype=torch.int64)


def verdict(model, x, y, x_adv, **options):
    return judge(model, x, y, x_adv=x_adv, threat=THREAT, **options)


def test_an_honest_success_is_one():
    x, y = clean(0.45)
    found = verdict(Threshold(), x, y, x + 0.1)
    assert found.broken().all()
    assert not found.projected.any()
    assert torch.allclose(found.distance, torch.full((8,), 0.1, dtype=torch.float64), atol=1e-6)
    assert (found.prediction == 1).all()


def test_an_image_out_of_the_ball_is_projected_and_judged_there():
    x, y = clean(0.3)
    found = verdict(Threshold(), x, y, torch.ones_like(x))
    assert found.projected.all()
    assert not found.broken().any()
    assert (found.distance <= 0.1).all()


def test_an_image_out_of_the_box_is_projected():
    x, y = clean(0.97)
    found = verdict(Threshold(1.02), x, y, x + 0.09)
    assert found.projected.all()
    assert not found.broken().any()


def test_a_nan_image_is_a_failure_not_a_success():
    x, y = clean()
    for bad in (math.nan, math.inf):
        x_adv = x.clone()
        x_adv[2, 0, 0, 0] = bad
        found = verdict(Threshold(), x, y, x_adv)
        assert found.failed.tolist() == [i == 2 for i in range(8)]
        assert not found.broken().any()


class Poisonable(Threshold):
    def forward(self, x):
        return super().forward(x) / (x.flatten(1).amax(1, keepdim=True) < 0.35)


def test_nan_logits_are_a_failure_not_a_success():
    x, y = clean()
    x_adv = x.clone()
    x_adv[5] += 0.09
    found = verdict(Poisonable(), x, y, x_adv)
    assert found.failed.tolist() == [i == 5 for i in range(8)]
    assert not found.broken().any()


def test_success_on_a_search_copy_only_is_none():
    x, y = clean(0.45)
    model = Threshold(0.6)
    twin = copy.deepcopy(model)
    twin.level.data.fill_(0.5)
    assert verdict(twin, x, y, x + 0.1).broken().all()
    assert not verdict(model, x, y, x + 0.1).broken().any()


def test_what_was_wrong_before_is_broken_at_distance_zero_and_no_win_of_the_attack():
    x, y = clean(0.7)
    found = verdict(Threshold(), x, y, x)
    assert found.broken().all()
    assert (found.distance == 0).all()


class Companion(nn.Module):
    """Looks at the mean of its batch."""

    def forward(self, x):
        shift = x.flatten(1).mean(1) - x.mean()
        return torch.stack([shift, -shift], 1)


def test_a_model_that_depends_on_its_batch_is_unstable():
    gen = torch.Generator().manual_seed(0)
    for count in (40, 64, 100):
        x = torch.rand(count, 1, 4, 4, generator=gen).sort(0).values
        found = verdict(Companion(), x, torch.zeros(count, dtype=torch.int64), x)
        assert found.unstable.any()
        assert found.broken()[found.unstable].all()


def test_a_tie_is_no_recognition():
    x, y = clean(0.5)
    assert verdict(Threshold(), x, y, x).broken().all()


def test_one_sample_is_judged():
    x, y = clean(0.45, 1)
    assert verdict(Threshold(), x, y, x + 0.1).broken().all()


def test_the_distance_is_recomputed_in_float64():
    x, y = clean(0.3)
    found = verdict(Threshold(), x, y, x + 0.05)
    assert found.distance.dtype == torch.float64
    assert torch.equal(found.distance, distance(x, x + 0.05, "linf"))


# --- randomised models


class Lucky(nn.Module):
    """Class 0 with a probability that is the image's mean."""

    def forward(self, x):
        right = torch.rand(len(x)) < x.flatten(1).mean(1)
        margin = torch.where(right, 1.0, -1.0)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def repeated(model, x, y, x_adv, **options):
    return judge_repeatedly(model, x, y, x_adv=x_adv, threat=ThreatModel.parse("linf(1)"), **options)


def test_a_randomised_model_is_judged_by_the_mean_over_draws():
    shares = torch.tensor([0.0, 0.1, 0.3, 0.7, 0.9, 1.0])
    x = shares.view(-1, 1, 1, 1).expand(6, 1, 4, 4).contiguous()
    found = repeated(Lucky(), x, torch.zeros(6, dtype=torch.int64), x, draws=400)
    assert (found.score - shares).abs().max() < 4 * 0.5 / 20
    low, high = found.interval
    assert ((low <= shares + 1e-9) & (shares <= high + 1e-9)).sum() >= 5 and (high - low).max() < 0.1
    assert found.broken().tolist() == [True] * 3 + [False] * 3
    assert found.worst.tolist() == [0.0] * 5 + [1.0] and found.prediction.tolist() == [1, 1, 1, 0, 0, 0]
    assert (found.margin > 0).tolist() == [False] * 3 + [True] * 3
    mean, worst = found.accuracy(), found.worst_accuracy()
    assert abs(mean.value - 0.5) < 0.05 and mean.low < 0.3 < 0.7 < mean.high and mean.n == 6
    assert worst.value == pytest.approx(1 / 6)


def test_its_intervals_are_wilsons():
    from robench.metrics.stats import wilson

    x, y = clean(0.4, 5)
    found = repeated(Lucky(), x, y, x, draws=30)
    for i in range(5):
        want = wilson(int(found.scores[:, i].sum()), 30)
        assert float(found.interval[0][i]) == pytest.approx(want.low, abs=1e-12)
        assert float(found.interval[1][i]) == pytest.approx(want.high, abs=1e-12)
    want = wilson(int(found.worst.sum()), 5)
    assert found.worst_accuracy().high == pytest.approx(want.high, abs=1e-12)


def test_verdicts_on_a_randomised_model_repeat_themselves_and_leave_the_generators_alone():
    x, y = clean(0.5, 20)
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        results.append(repeated(Lucky(), x, y, x, seed=3).scores)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*results)
    assert not torch.equal(results[0], repeated(Lucky(), x, y, x, seed=4).scores)


def test_decided_verdicts_are_the_commoner_answer_and_say_where_draws_may_decide_otherwise():
    x = torch.tensor([0.0, 0.5, 1.0]).view(-1, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
    found = repeated(Lucky(), x, torch.zeros(3, dtype=torch.int64), x).decided()
    assert found.score[0] == 0 and found.score[2] == 1
    assert found.unstable.tolist() == [False, True, False]


def test_many_looks_at_a_deterministic_model_are_the_judge_s():
    x, y = clean(0.45)
    for move in (0.02, 0.08, 0.3, math.nan):
        once = verdict(Threshold(), x, y, x + move)
        often = judge_repeatedly(Threshold(), x, y, x_adv=x + move, threat=THREAT)
        assert torch.equal(once.broken(), often.broken()) and torch.equal(once.failed, often.failed)
        assert torch.equal(once.projected, often.projected) and torch.equal(once.distance, often.distance)
        decided = often.decided()
        assert torch.equal(decided.score, once.score) and torch.allclose(decided.margin, once.margin)


def test_too_few_draws_are_refused():
    x, y = clean()
    with pytest.raises(ConfigError, match="draws must be at least 20, got 19"):
        repeated(Lucky(), x, y, x, draws=19)


@pytest.mark.parametrize("count", [5, 30, 50, 51, 1000])
def test_the_judge_s_interval_is_that_of_the_metrics_for_every_count(count):
    from robench.judge import _wilson_bounds
    from robench.metrics.stats import wilson

    low, high = _wilson_bounds(torch.arange(count + 1, dtype=torch.float64) / count, count)
    want = [wilson(k, count) for k in range(count + 1)]
    assert low.tolist() == pytest.approx([e.low for e in want], abs=1e-12)
    assert high.tolist() == pytest.approx([e.high for e in want], abs=1e-12)
