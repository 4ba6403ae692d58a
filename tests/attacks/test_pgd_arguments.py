"""Arguments with which an attack would do nothing are refused, because nothing done looks like robustness."""

import pytest

from robench import evaluate
from robench.errors import ConfigError, RobenchError


@pytest.mark.parametrize("attack", ["pgd(restarts=0)", "pgd(step_size=0)", "pgd(step_size=-0.1)", "noise(draws=0)"])
def test_an_attack_that_would_do_nothing_never_looks_like_robustness(attack):
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(8, 1, 4, 4)
    try:
        found = evaluate(net, x, net(x).argmax(1), threat="linf(0.02)", attacks=[attack])
    except RobenchError as error:
        assert isinstance(error, ConfigError)
    else:
        assert found.robust_accuracy.value == 0 and set(found.rows["status"]) == {"failed"}
