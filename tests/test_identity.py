"""Identity is content: what changes under a name is computed again and told; what does not change is kept."""

from __future__ import annotations

import copy
import functools
import json
import logging
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from robench import catalog
from robench.api import plan_run
from robench.changes import reasons
from robench.cli import main
from robench.errors import ConfigError, ModelError
from robench.lineage import planned
from robench.models import weights
from robench.models.identity import attributes_of, describe
from robench.models.weights import fresh
from robench.plan import Plan
from robench.runner import Job, perform
from robench.sources import UserModel
from robench.spec import Context
from robench.store import Store
from robench.suite import parse_suite
from robench.user_code import content_of_module, files_of_module, with_imports
from robench.workshop import load

CODE = """
import torch
from torch import nn
import helper_of_mynet

def make():
    torch.manual_seed({seed})
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10)).eval()

def drawn():
    return make.__globals__["nn"].Linear(4, 2)

def wild():
    import os
    net = nn.Linear(4, 2)
    net.bias.data.fill_(int.from_bytes(os.urandom(6), "big") / 2**48)
    return net
"""
SUITE = "name: s\nlimit: 12\nthreats: [linf(0.1)]\nattacks: [fgsm]\n"
PLUGIN = """
from robench.registry import facts


@facts(version=1, norms=("linf",))
def attack(victim, x, y, *, threat, seeds, strength=0.5):
    "Nothing."
    return x


@facts(version=1, kind="defense")
def defense(model, *, strength=0.5):
    "Nothing."
    return model


@facts(version=1)
def net(*, num_classes=10, in_channels=1, size=32):
    "A linear net."
    from torch import nn
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * size * size, num_classes))
"""


def text_of(seed: int) -> str:
    return CODE.replace("{seed}", str(seed))


def plan(model: UserModel | str, suite: str = SUITE) -> Plan:
    return plan_run(parse_suite(suite), models=[model], data="digits", trust=True)[0]


def remembered(made: Plan, folder: Path) -> Store:
    """A run directory in which every cell of the plan is finished, and its ``run.json``."""
    store = Store(folder)
    for cell in made.cells:
        store.put(cell, pd.DataFrame({"sample": [0]}), {})
    models = {name: dict(facts) for name, facts in made.identities.items()}
    store.write_run(
        {"cells": {c.digest: planned(c) for c in made.cells}, "limited": False, "identities": {"models": models}}
    )
    return store


def told(before: Plan, after: Plan, folder: Path) -> list[str]:
    """What a run of the second plan says in the run directory of the first."""
    store = remembered(before, folder)
    todo = store.todo(after.cells)
    assert len(todo) in (0, len(after.cells))
    return reasons(after.cells, store.finished(), store.last_run(), after.identities)


@pytest.fixture
def code(tmp_path) -> Path:
    (tmp_path / "helper_of_mynet.py").write_text("SCALE = 1\n")
    (tmp_path / "mynet.py").write_text(text_of(3))
    return tmp_path / "mynet.py"


def test_unchanged_code_keeps_its_cells(code, tmp_path):
    name = f"{code}:make"
    assert told(plan(name), plan(name), tmp_path / "run") == []


def test_other_weights_of_a_file_are_computed_again_and_told(code, tmp_path):
    """The code stays, and the weights that it reads change: before, the old numbers were kept."""
    torch.save(fresh("mlp", seed=0).state_dict(), tmp_path / "w.pt")
    text = "import torch\nfrom robench.models.weights import fresh\n\ndef after():\n    net = fresh('mlp', seed=1)\n"
    code.write_text(text + f"    net.load_state_dict(torch.load({str(tmp_path / 'w.pt')!r}))\n    return net\n")
    before = plan(f"{code}:after")
    torch.save(fresh("mlp", seed=5).state_dict(), tmp_path / "w.pt")
    (line,) = told(before, plan(f"{code}:after"), tmp_path / "run")
    assert line.startswith("model mynet.py:after: weights changed since the last run (sha256 ")
    assert line.endswith(": 4 cells are computed again") and "code" not in line


@pytest.mark.slow
def test_another_helper_module_is_told_by_its_name(code, tmp_path):
    before = plan(f"{code}:make")
    (tmp_path / "helper_of_mynet.py").write_text("SCALE = 2\n")
    (line,) = told(before, plan(f"{code}:make"), tmp_path / "run")
    assert "code changed since the last run (helper_of_mynet.py)" in line and "weights" not in line


@pytest.mark.slow
def test_a_module_is_known_by_what_it_returns(tmp_path, monkeypatch):
    """``package.module:factory``, whose package was changed under the same name."""
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    text = "import torch\nfrom users_package import sizes\n\ndef make():\n    torch.manual_seed(1)\n"
    (package / "net.py").write_text(
        text + "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(sizes.WIDTH, 10))\n"
    )
    (package / "sizes.py").write_text("WIDTH = 1024\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = plan("users_package.net:make")
    assert told(before, plan("users_package.net:make"), tmp_path / "one") == []
    (package / "net.py").write_text((package / "net.py").read_text().replace("seed(1)", "seed(2)"))
    (line,) = told(before, plan("users_package.net:make"), tmp_path / "two")
    assert "code changed since the last run (users_package/net.py)" in line and "weights changed" in line


@pytest.mark.parametrize("form", ["safetensors", "pt2"])
def test_other_bytes_of_a_file_are_computed_again_and_told(tmp_path, form):
    def write(seed: int) -> None:
        net = fresh("mlp", seed=seed)
        if form == "safetensors":
            save_file(net.state_dict(), str(tmp_path / "net.safetensors"))
        else:
            batch = torch.export.Dim("batch")
            torch.export.save(
                torch.export.export(net, (torch.zeros(2, 1, 32, 32),), dynamic_shapes=({0: batch},)), tmp_path / "net.pt2"
            )

    model = UserModel(str(tmp_path / f"net.{form}"), arch="mlp" if form == "safetensors" else "")
    write(1)
    before = plan(model)
    assert told(before, plan(model), tmp_path / "one") == []
    write(2)
    (line,) = told(before, plan(model), tmp_path / "two")
    assert line.startswith(f"model net.{form}: its file changed since the last run (sha256 ")


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Callable[[str], None]:
    """A third party's package with an attack, a defence and an architecture; called with a text it is installed anew."""
    place = tmp_path / "installed"
    (place / "users_plugin").mkdir(parents=True)
    info = place / "users_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: users-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[robench.attacks]\nusers = users_plugin.code:attack\n[robench.defenses]\nusers = users_plugin.code:defense\n"
        "[robench.architectures]\nusers = users_plugin.code:net\n"
    )
    (place / "users_plugin" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(place))
    for name in ("users_plugin", "users_plugin.code"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    tables = (catalog.ATTACKS, catalog.DEFENSES, catalog.ARCHITECTURES, weights.ARCHITECTURES)
    for table in tables:
        monkeypatch.delitem(table.__dict__, "_entries", raising=False)

    def install(text: str) -> None:
        (place / "users_plugin" / "code.py").write_text(text)

    install(PLUGIN)
    yield install
    for table in tables:
        table.__dict__.pop("_entries", None)


@pytest.mark.parametrize("what", ["attack", "defense", "architecture"])
def test_other_code_of_a_plug_in_is_computed_again_and_told(tmp_path, plugin, what):
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    save_file(linear.state_dict(), str(tmp_path / "n.safetensors"))
    model = UserModel(str(tmp_path / "n.safetensors"), arch="users") if what == "architecture" else "digits-mlp"
    more = {"attack": SUITE.replace("fgsm", "users"), "defense": SUITE + "defenses: [{model: digits-mlp, defense: users}]\n"}
    suite = more.get(what, SUITE)
    before = plan(model, suite)
    store = remembered(before, tmp_path / "run")
    assert store.todo(plan(model, suite).cells) == []
    plugin(PLUGIN + "\n# other code, the same version\n")
    after = plan(model, suite)
    todo = store.todo(after.cells)
    assert todo and all(c.digest not in {b.digest for b in before.cells} for c in todo)
    lines = reasons(after.cells, store.finished(), store.last_run(), after.identities)
    assert lines and all("users-plugin==1.0:1:" in line and "computed again" in line for line in lines)


def test_a_factory_that_draws_its_weights_gives_one_model(code):
    one, other = (plan(f"{code}:drawn").identities["mynet.py:drawn"] for _ in range(2))
    assert one["drawn"] and one["weights"] == other["weights"]


@pytest.mark.slow
def test_a_factory_that_gives_another_model_at_every_call_is_refused(code):
    with pytest.raises(ModelError, match="the same model at every call, got 'other weights at every call'"):
        plan(f"{code}:wild")


def test_a_factory_that_ends_its_process_is_one_error(code):
    code.write_text("import os\n\ndef make():\n    os._exit(0)\n")
    with pytest.raises(ModelError, match=r"the factory .*mynet\.py:make"):
        plan(f"{code}:make")


def test_code_without_trust_is_not_executed(code, tmp_path):
    code.write_text(f"open({str(tmp_path / 'touched')!r}, 'w')\n")
    with pytest.raises(ModelError, match="--trust"):
        plan_run(parse_suite(SUITE), models=[f"{code}:make"], data="digits")
    assert not (tmp_path / "touched").exists()


def test_one_model_under_two_names_is_refused(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file(fresh("mlp", seed=1).state_dict(), str(tmp_path / name))
    users = [UserModel(str(tmp_path / n), arch="mlp") for n in ("a.safetensors", "b.safetensors")]
    with pytest.raises(ConfigError, match=r"a\.safetensors and b\.safetensors, which are the same"):
        plan_run(parse_suite(SUITE), models=users, data="digits")


def test_weights_that_change_after_planning_are_an_error_of_the_cell(code, tmp_path):
    torch.save(torch.tensor(1.0), tmp_path / "w.pt")
    read = f"torch.load({str(tmp_path / 'w.pt')!r})"
    code.write_text(f"import torch\n\ndef make():\n    net = torch.nn.Linear(1, 2)\n    net.bias.data.fill_({read})\n"
                    "    net.weight.data.zero_()\n    return net\n")  # fmt: skip
    made, paths = plan_run(parse_suite(SUITE), models=[f"{code}:make"], data="digits", trust=True)
    context = Context(str(tmp_path), trust=True, sources=paths, code=made.code)
    torch.save(torch.tensor(2.0), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="must be those that the run was planned with"):
        load(made.cells[0].model, context)


def test_a_weights_file_that_changes_after_planning_is_an_error_of_the_cell(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(fresh("mlp", seed=1).state_dict(), str(path))
    made, paths = plan_run(parse_suite(SUITE), models=[UserModel(str(path), arch="mlp")], data="digits")
    save_file(fresh("mlp", seed=2).state_dict(), str(path))
    with pytest.raises(ModelError, match="sha256"):
        load(made.cells[0].model, Context(str(tmp_path), sources=paths))


def test_code_that_changes_after_planning_is_an_error_of_the_cell(code, tmp_path):
    made, paths = plan_run(parse_suite(SUITE), models=[f"{code}:make"], data="digits", trust=True)
    assert {Path(path).name for path, _ in made.code} >= {"mynet.py", "helper_of_mynet.py"}
    (tmp_path / "helper_of_mynet.py").write_text("SCALE = 3\n")
    outcome = perform(Job(made.cells[0], Context(str(tmp_path), trust=True, sources=paths, code=made.code)))
    assert "helper_of_mynet.py must be unchanged since the run was planned" in outcome.error


def test_imports_are_followed_without_running_them(tmp_path):
    (tmp_path / "package").mkdir()
    for name, text in {
        "main.py": "def f():\n    from package import one\n    import json, torch, missing_module\n",
        "package/__init__.py": "",
        "package/one.py": "from .two import thing\nraise SystemExit\n",
        "package/two.py": "from . import three\nthing = 1\n",
        "package/three.py": "import main\n",
        "package/unused.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    found = with_imports([tmp_path / "main.py"], places=[tmp_path])
    names = {str(p.relative_to(tmp_path)) for p in found}
    assert names == {"main.py", "package/__init__.py", "package/one.py", "package/two.py", "package/three.py"}


def test_the_same_package_elsewhere_has_the_same_content(tmp_path, monkeypatch):
    found = []
    for where in ("one", "two"):
        (tmp_path / where / "some_package").mkdir(parents=True)
        (tmp_path / where / "some_package" / "__init__.py").write_text("x = 1\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / where))
            found.append(content_of_module("some_package.sub"))
    assert found[0] == found[1] != content_of_module("no_such_package")


@pytest.mark.parametrize("place", [".plugins", "plain", ".a/b/c"])
def test_a_package_counts_wherever_it_lies_and_its_dotted_folders_do_not(place, tmp_path, monkeypatch):
    """Content is what lies in the package: dots above it mean nothing, dots in it leave files out at any depth."""
    package = tmp_path / place / "dotted_package"
    files = {"__init__.py": "", "code.py": "x = 1", "data/weights.bin": "1"}
    hidden = {".git/objects/ab/cdef": "1", "data/.cache/x/y/z": "1", "__pycache__/code.pyc": "1", ".DS_Store": "1"}
    for name, text in {**files, **hidden}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    assert {str(path.relative_to(package)) for path in files_of_module("dotted_package.code")} == set(files)
    before = content_of_module("dotted_package.code")
    for name in hidden:
        (package / name).write_text("changed")
    assert content_of_module("dotted_package.code") == before
    for name in ("code.py", "data/weights.bin"):
        (package / name).write_text("changed")
        assert content_of_module("dotted_package.code") != before
        (package / name).write_text(files[name])


def test_a_module_in_an_archive_has_the_archives_content(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("packed_package/__init__.py", "x = 1")
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    assert files_of_module("packed_package") == (tmp_path / "packed.zip",)


def test_a_module_without_files_is_refused():
    """An edit of it would change nothing that is compared."""
    with pytest.raises(ConfigError, match="code in files"):
        content_of_module("sys")


@pytest.mark.slow
def test_identities_are_kept_in_run_json_without_paths(code, tmp_path):
    store = remembered(plan(f"{code}:make"), tmp_path / "run")
    facts = store.read_run()["identities"]["models"]["mynet.py:make"]
    assert set(facts["code"]) == {"mynet.py", "helper_of_mynet.py"} and len(facts["weights"]) == 64
    assert str(tmp_path) not in json.dumps(facts)


HIDDEN = """
import numpy as np, torch
from torch import nn

PATH = {path!r}

def net():
    own = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10, bias=False)).eval()
    own[2].weight.data = torch.load(PATH, weights_only=True)
    return own

class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = [net()]
    def forward(self, x):
        return self.nets[0](x)

class Holder:
    def __init__(self):
        self.inner = net()
    def __call__(self, x):
        return self.inner(x)

class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.holder = Holder()
    def forward(self, x):
        return self.holder(x)

def in_a_closure():
    nets = [net()]
    return lambda x: nets[0](x)

def of_arrays():
    weight = net()[2].weight.detach().numpy()
    return lambda x: nn.functional.avg_pool2d(x, 4).flatten(1) @ torch.from_numpy(weight).T

class Late(nn.Module):
    def forward(self, x):
        return net()(x)
"""


@pytest.mark.parametrize("form", ["Listed", "Around", "Holder", "in_a_closure", "of_arrays"])
def test_weights_that_hide_in_python_objects_are_part_of_the_identity(form, tmp_path):
    code = tmp_path / f"hidden_{form.lower()}.py"
    code.write_text(HIDDEN.format(path=str(tmp_path / "w.pt")))
    found = []
    for seed in (0, 0, 1):
        torch.save(torch.randn(10, 64, generator=torch.Generator().manual_seed(seed)), tmp_path / "w.pt")
        found.append(describe((f"{code}:{form}",))[0].sha256)
    assert found[0] == found[1] != found[2]


class Holding(nn.Module):
    """A model that keeps a value."""

    def __init__(self, value=None) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        nn.init.ones_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.value = value


def nested(value, depth: int):
    for level in range(depth):
        value = [value] if level % 2 else {"inner": value}
    return value


class Chain:
    """An object that holds another."""

    def __init__(self, inner) -> None:
        self.inner = inner


def chained(value, count: int):
    for _ in range(count):
        value = Chain(value)
    return value


DIFFERENT = {
    "a numpy function": (np.tanh, np.sin),
    "a torch function": (torch.tanh, torch.sin),
    "a class": (nn.ReLU, nn.GELU),
    "a numpy scalar": (np.float64(1), np.float64(2)),
    "an array": (np.ones(3), np.zeros(3)),
    "an array of objects": (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object)),
    "an array's type": (np.dtype("float32"), np.dtype("float64")),
    "deep lists": (nested(1, 30), nested(2, 30)),
    "deep objects": (chained(1, 30), chained(2, 30)),
    "a set": ({"a", "b", 1}, {"a", "c", 1}),
    "a function with a default": (lambda x, y=1: x, lambda x, y=2: x),
    "a cached function": (functools.lru_cache(lambda x, y=1: x), functools.lru_cache(lambda x, y=2: x)),
    "a partial": (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=1)),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_values_that_a_model_keeps_are_part_of_its_identity(kind):
    one, other = DIFFERENT[kind]
    assert attributes_of(Holding(one)) == attributes_of(Holding(copy.deepcopy(one))) != attributes_of(Holding(other))


def looped(kind: str, number: int) -> Holding:
    """A model that can be reached from itself."""
    net = Holding(number)
    if kind == "head":
        net.head.owner = [net]
    elif kind == "list":
        net.loop = [number]
        net.loop.append(net.loop)
    elif kind == "objects":
        net.one, net.other = Chain(None), Chain(number)
        net.one.inner, net.other.back = net.other, net.one
    elif kind == "method":
        net.call = net.head.forward
        net.head.loss = net.forward
    else:
        net.crowd = [Chain(number) for _ in range(12)]
        for member in net.crowd:
            member.others = net.crowd, list(net.crowd)
    return net


@pytest.mark.parametrize("kind", ["head", "list", "objects", "method", "crowd"])
def test_back_references_are_followed_once(kind):
    assert attributes_of(looped(kind, 1)) == attributes_of(looped(kind, 1)) != attributes_of(looped(kind, 2))


def test_what_no_identity_can_follow_does_not_stop_it():
    """Longer chains than Python follows, locks, files, modules; a logger holds every logger of the process."""
    logger = logging.getLogger("robench.test")
    for value in (chained(1, 5000), nested(1, 5000), threading.Lock(), sys.stderr, torch, logger):
        assert len(attributes_of(Holding(value))) == 64
    before = attributes_of(Holding(logger))
    logging.getLogger("robench.test.other").setLevel(logging.ERROR)
    assert attributes_of(Holding(logger)) == before


@pytest.mark.slow
def test_a_model_that_answers_otherwise_than_its_kept_results_is_refused(tmp_path):
    code, out = tmp_path / "late.py", tmp_path / "run"
    code.write_text(HIDDEN.format(path=str(tmp_path / "w.pt")))
    (tmp_path / "s.yaml").write_text(SUITE)
    args = ["run", "--suite", tmp_path / "s.yaml", "--model", f"{code}:Late", "--trust", "--scenario", "clean", "--out", out]
    codes = []
    for seed in (0, 0, 1):
        torch.save(torch.randn(10, 64, generator=torch.Generator().manual_seed(seed)), tmp_path / "w.pt")
        done = CliRunner().invoke(main, [str(a) for a in args])
        codes.append(done.exit_code)
    assert codes == [0, 0, 2] and "other answers" in done.output
