"""Fixtures of the whole suite, and a closing account of what ran and what was skipped, and why."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from robench import evaluation
from robench.spec import Context, Settings
from robench.workshop import forget

ROOT = Path(__file__).resolve().parent.parent
MARKERS = ("slow", "gpu", "shared")
_DESELECTED = pytest.StashKey[Counter]()


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    os.environ.pop("COLUMNS", None)  # texts would be cut at it
    os.unsetenv("COLUMNS")  # readline, which pytest imports, sets it for child processes behind Python's back
    config.stash[_DESELECTED] = Counter()
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(Workers())


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Path of ../shared/data (or of ROBENCH_SHARED); skips where it is missing, fails where it is required."""
    path = Path(os.environ.get("ROBENCH_SHARED") or ROOT.parent / "shared" / "data")
    if path.is_dir():
        return path
    reason = f"no shared data at {path}; set ROBENCH_SHARED"
    if os.environ.get("ROBENCH_REQUIRE_SHARED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def published(shared_data: Path) -> Callable[[str], nn.Module]:
    """The maker of the published models by name, from the file that users hand to ``--model``."""
    spec = importlib.util.spec_from_file_location("published", ROOT / "tests" / "published.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name: module.published(shared_data / "models", name).eval()


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module ``tests/metrics/synthetic.py``, which makes frames."""
    path = ROOT / "tests" / "metrics" / "synthetic.py"
    spec = importlib.util.spec_from_file_location("synthetic_frames", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """``evaluate`` and ``attack`` pad batches to 16 images instead of 64: a quarter of the time where a test has so few."""
    monkeypatch.setattr(evaluation, "Settings", partial(Settings, width=16))


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """Where artifacts of one test are kept; nothing loaded before or after is remembered."""
    forget()
    yield Context(str(tmp_path))
    forget()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def kinds(keywords: object) -> list[str]:
    """Markers of a test that the account counts; ``unmarked`` where it has none."""
    return [m for m in MARKERS if m in keywords] or ["unmarked"]  # type: ignore[operator]


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[_DESELECTED].update(m for m in kinds({k.name for k in item.iter_markers()}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the process that reports what it deselected."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = dict(session.config.stash[_DESELECTED])


class Workers:
    """Hooks that exist only with pytest-xdist."""

    @staticmethod
    def pytest_testnodedown(node, error) -> None:
        """Every worker collects, and so deselects, the same tests: one worker's count is everyone's."""
        told = getattr(node, "workeroutput", {}).get("deselected")
        node.config.stash[_DESELECTED] = Counter(told or node.config.stash[_DESELECTED])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = (yield).get_result()
    report.robench_kinds = kinds({m.name for m in item.iter_markers()})


def account(stats: dict[str, list], deselected: Counter, expression: str) -> list[str]:
    """One line per kind of test: ran, passed, failed, skipped (with reasons), deselected."""
    counts: dict[str, Counter] = {kind: Counter() for kind in (*MARKERS, "unmarked")}
    reasons: dict[str, Counter] = {kind: Counter() for kind in counts}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in stats.get(outcome, []):
            for kind in getattr(report, "robench_kinds", []):
                counts[kind][outcome] += 1
                if outcome == "skipped" and isinstance(report.longrepr, tuple):
                    reasons[kind][report.longrepr[2].removeprefix("Skipped: ")] += 1
    lines = []
    for kind, count in counts.items():
        ran = sum(n for outcome, n in count.items() if outcome != "skipped")
        why = [f"{n} skipped: {reason}" for reason, n in reasons[kind].items()]
        why += [f"{deselected[kind]} deselected by -m {expression!r}"] if deselected[kind] else []
        bad = count["failed"] + count["error"]
        text = f"{kind}: {ran} ran, {count['passed']} passed, {bad} failed, {count['skipped']} skipped"
        lines.append("; ".join([text, *why]))
    return lines


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly or hasattr(config, "workerinput"):
        return
    for line in account(reporter.stats, config.stash[_DESELECTED], config.option.markexpr or ""):
        reporter.write_line(line)
