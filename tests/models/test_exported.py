"""Exported programs: honest ones compute what torch's own reader computes, hostile ones do nothing at all."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from robench.errors import ModelError
from robench.models import TABLE, fresh, load_model
from robench.models import _operators as operators
from robench.models.exported import load_exported
from tests.models import hostile

WATCHED = """
import json, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch, torch.export
from robench.models.exported import load_exported
from robench.errors import RobenchError

READER, folder, seen = sys.argv[2], Path(sys.argv[3]), []
WRITING = ("w", "a", "x", "+")

def watch(event, args):
    if event == "open" and (any(c in str(args[1] or "") for c in WRITING) or (args[2] or 0) & 0o3103):
        seen.append(f"open {args[0]}")
    elif event.split(".")[0] in ("subprocess", "socket", "ctypes", "shutil", "pickle"):
        seen.append(event)
    elif event in ("os.system", "os.exec", "os.remove", "os.rename", "os.mkdir"):
        seen.append(event)

def torch_reader(path):
    torch.export.load(path).module(check_guards=False)(torch.rand(4, 1, 8, 8))

def ours(path):
    load_exported(Path(path))(torch.rand(4, 1, 8, 8))

for path in ("honest.pt2", "honest.pt2"):
    {"torch": torch_reader, "ours": ours}[READER](str(folder / path))
sys.addaudithook(watch)
for path in sorted(folder.glob("[0-9]*.pt2")):
    seen.clear()
    try:
        {"torch": torch_reader, "ours": ours}[READER](str(path))
        kind, text = "loaded", ""
    except RobenchError as error:
        kind, text = type(error).__name__, str(error)
    except Exception as error:
        kind, text = "error " + type(error).__name__, str(error)
    if sys.modules.pop("canary_module", None):
        seen.append("import")
    print(json.dumps([path.name, kind, text, seen[:5]]), flush=True)
"""


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder of hostile files, and what each is, by file name; a module in it marks its import."""
    folder = tmp_path_factory.mktemp("hostile")
    mark = folder / "marks" / "executed"
    mark.parent.mkdir()
    (folder / f"{hostile.CANARY}.py").write_text(f"open({str(mark)!r}, 'w')\nmade = dict\n")
    names = {}
    for number, (name, data) in enumerate(hostile.archives(folder, mark).items()):
        file = folder / f"{number:03}.pt2"
        file.write_bytes(data)
        names[file.name] = name
    return folder, names


def watched(reader: str, folder: Path) -> list[tuple[str, str, str, list[str]]]:
    """(file, kind of error, its text, what happened) of every file, read in a process that records what is done."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", WATCHED, str(folder), reader, str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_hostile_files_do_nothing_and_are_told_in_one_line(hostile_folder: tuple[Path, dict[str, str]]) -> None:
    folder, names = hostile_folder
    before = sorted(folder.rglob("*.*")) + list((folder / "marks").iterdir())
    found = watched("ours", folder)
    assert len(found) == len(names) >= 100
    for file, kind, text, happened in found:
        about = (names[file], kind, text, happened)
        assert kind == "ModelError" and not happened, about
        assert "\n" not in text and len(text) < 700 and text.isascii(), about
    assert (
        sorted(p for p in folder.rglob("*.*") if "__pycache__" not in p.parts) + list((folder / "marks").iterdir()) == before
    )


def test_the_known_ways_harm_readers_of_torch(tmp_path: Path) -> None:
    """The watch sees harm where there is some: each way acts when torch's own reader is given the file."""
    mark = tmp_path / "marks" / "executed"
    mark.parent.mkdir()
    (tmp_path / f"{hostile.CANARY}.py").write_text("made = dict\n")
    ways = hostile.four_ways(hostile.honest(tmp_path / "honest.pt2"), mark)
    for number, data in enumerate(ways.values()):
        (tmp_path / f"{number}.pt2").write_bytes(data)
    happened = {name: row[3] for name, row in zip(ways, watched("torch", tmp_path), strict=True)}
    assert "import" in happened["tree spec"]
    for name in ("capitals", "two directories"):
        assert any("executed" in event for event in happened[name]), name
    assert mark.stat().st_size == 72 * 4  # mapped into memory by from_file, and written


class Composed(nn.Module):
    """Parts put together by a function of (parts, images)."""

    def __init__(self, function: Any, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.parts, x)


def binarised(parts: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    hidden = parts[0](x.flatten(1))
    signs = torch.where(hidden >= 0, torch.ones_like(hidden), -torch.ones_like(hidden))
    other = torch.sign(parts[1](signs)) * 0.5 + torch.round(signs[:, :16] * 3).clamp(-1, 1)
    return parts[2](other) + 0.1 * parts[2](hidden[:, :16])


def constants(parts: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    x = (x - torch.tensor([0.5])) / torch.tensor(0.25)
    y, count = x.clone(), x.shape[0]
    y[:, :, 0] = 1.0
    y[:, :, 1:3] += 2
    z = torch.cat([y.view(count, -1), torch.arange(4.0).expand(count, 4), torch.full((count, 2), 3.0)], 1)
    one, two = z.chunk(2, 1)
    top, _ = one.topk(10, 1)
    products = torch.einsum("bi,bi->b", one, two)
    return parts[0](z) + top.mean(1, keepdim=True) + products[:, None] + F.pad(top[:, :5], (0, 5)) + one.std(1, keepdim=True)


def attended(parts: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    rows = x[:, 0]
    return parts[1](parts[0](rows, rows, rows)[0].mean(1))


def linear(inputs: int = 1024) -> nn.Linear:
    return nn.Linear(inputs, 10)


HONEST = {
    **{name: lambda name=name: fresh(name, seed=1) for name in TABLE},
    "activations in place": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(8)
    ),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 8), nn.GELU(approximate="tanh"),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.InstanceNorm2d(8), nn.LocalResponseNorm(2), nn.Flatten(),
        linear(8 * 17 * 17),
    ),
    "upsampling": lambda: nn.Sequential(
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(1, 4, 3, stride=4), nn.PReLU(), nn.PixelShuffle(2),
        nn.LayerNorm([32, 32]), nn.Flatten(), linear(), nn.LogSoftmax(1),
    ),
    "attention": lambda: Composed(attended, nn.MultiheadAttention(32, 4, batch_first=True), linear(32)),
    "binarised": lambda: Composed(binarised, nn.Linear(1024, 32), nn.Linear(32, 16), linear(16)),
    "constants": lambda: Composed(constants, linear(1030)),
    "low precision": lambda: Composed(lambda p, x: p[0](x.flatten(1).bfloat16()).float(), linear().bfloat16()),
    "one layer twice": lambda: Composed(lambda p, x: p[1](p[0](p[0](x.flatten(1))).relu()), nn.Linear(1024, 1024), linear()),
    "dictionary": lambda: Composed(lambda p, x: {"logits": p[0](x.flatten(1)), "rest": [x[:, 0, 0], (x.sum(),)]}, linear()),
    "tuple": lambda: Composed(lambda p, x: (p[0](x.flatten(1)),), linear()),
    "recurrent": lambda: Composed(lambda p, x: p[1](p[0](x[:, 0])[0][:, -1]), nn.LSTM(32, 8, batch_first=True), linear(8)),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(linear())),
}  # fmt: skip


@pytest.mark.parametrize(
    "decomposed", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as exported", "decomposed"]
)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("wrn", "resnet18") else n for n in HONEST]
)
def test_honest_programs_compute_what_torch_computes(name: str, decomposed: bool, tmp_path: Path) -> None:
    """Bit for bit, at another batch size than that of the export, with the names of the weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x, more = HONEST[name]().eval(), torch.rand(3, 1, 32, 32), torch.rand(5, 1, 32, 32)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    torch.export.save(program.run_decompositions() if decomposed else program, tmp_path / "net.pt2")
    read, wanted = load_exported(tmp_path / "net.pt2"), torch.export.load(tmp_path / "net.pt2").module(check_guards=False)
    for images in (x, more, more[:1]):
        with torch.no_grad():
            got, want = read(images), wanted(images)
        assert pytree.tree_structure(got) == pytree.tree_structure(want)
        assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True))
    assert list(read.program.state_dict()) == list(wanted.state_dict())
    assert read.shape == (1, 32, 32) and read.batch_sizes == (1, 64)
    if decomposed and name == "constants":
        return  # torch has no derivative for its aten.copy
    images = more.clone().requires_grad_()
    total = [sum(leaf.sum() for leaf in pytree.tree_leaves(model(images))) for model in (read, wanted)]
    assert torch.equal(*(torch.autograd.grad(t, images)[0] for t in total))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    """A graph checks no sizes by itself, and may return numbers for images it was not made for."""
    hostile.honest(tmp_path / "net.pt2")
    model = load_exported(tmp_path / "net.pt2")
    assert model(torch.rand(64, 1, 8, 8)).shape == (64, 3)
    for shape in ((65, 1, 8, 8), (4, 3, 8, 8), (4, 1, 9, 8), (4, 1, 64), (4, 1, 8, 8, 1)):
        with pytest.raises(RuntimeError, match="exported program must be of shape"):
            model(torch.rand(*shape))


def test_program_of_one_batch_size_says_so(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    torch.export.save(torch.export.export(net, (torch.rand(4, 1, 8, 8),)), tmp_path / "net.pt2")
    assert load_exported(tmp_path / "net.pt2").batch_sizes == (4, 4)


def test_what_an_honest_file_carries_besides_is_not_opened(tmp_path: Path) -> None:
    """A pickle among the sample inputs and Python text among the guards are never read, so they harm nobody."""
    mark = tmp_path / "executed"
    records = hostile.honest(tmp_path / "net.pt2")
    records = hostile.changed(records, "sample_inputs/model.pt", data=hostile.torch_pickled(mark))
    records = hostile.with_document(records, lambda found: found.update(guards_code=[f"open({str(mark)!r}, 'w')"]))
    records = hostile.with_record(records, "extra/notes.txt", b"trained on Monday")
    (tmp_path / "more.pt2").write_bytes(hostile.written(records))
    load_model(str(tmp_path / "more.pt2"), num_classes=3)
    assert not mark.exists()


def test_trust_reads_what_the_strict_reader_does_not(tmp_path: Path) -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                mean = x.mean((1, 2, 3), keepdim=True)
            return (x - mean).flatten(1)

    net = Inner().eval()
    torch.export.save(torch.export.export(net, (torch.rand(4, 1, 8, 8),)), tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"run_decompositions.*--trust"):
        load_exported(tmp_path / "net.pt2")
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(load_exported(tmp_path / "net.pt2", trust=True)(x), net(x))


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_altered_files_load_or_are_told(kind: str, tmp_path: Path) -> None:
    """300 random changes of one value of the graph, or of one byte: a model or one line, no other error."""
    records, draw = hostile.honest(tmp_path / "net.pt2"), random.Random(0)
    whole = hostile.written(records)
    told = 0
    for _ in range(300):
        if kind == "text":
            data = hostile.written(hostile.with_document(records, lambda found: altered(found, draw)))
        else:
            data = bytearray(whole)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        (tmp_path / "altered.pt2").write_bytes(bytes(data))
        try:
            load_exported(tmp_path / "altered.pt2")
        except ModelError as error:
            told += 1
            assert "\n" not in str(error)
    assert told >= (30 if kind == "text" else 290)


def altered(found: Any, draw: random.Random) -> None:
    """Put an unexpected value somewhere into nested lists and dictionaries, outside what is never read."""
    ignored = ("metadata", "guards_code", "tensor_values", "torch_version", "verifiers", "opset_version")
    while True:
        keys = [k for k in (found if isinstance(found, dict) else range(len(found))) if k not in ignored]
        key = draw.choice(keys)
        if not isinstance(found[key], dict | list) or not found[key] or draw.random() < 0.1:
            found[key] = draw.choice([None, True, -1, 0, 2**62, 1.5, "", "x" * 50, [], {}, [[]], {"as_int": 1}])
            return
        found = found[key]


def test_admitted_operators_are_pure() -> None:
    """By torch's own facts: known, nothing written but the first argument of in-place ones, random only with a switch."""
    for name in sorted(operators.MAKING | operators.VIEWING | operators.CHECKING | operators.WRITING):
        packet = getattr(torch.ops.aten, name)
        harmless = [getattr(packet, o) for o in packet.overloads() if operators.is_harmless(getattr(packet, o))]
        assert harmless, name
        for function in harmless:
            seeded = torch.Tag.nondeterministic_seeded in function.tags
            assert not seeded or name in operators.EVAL, name
            shares = any(result.alias_info is not None for result in function._schema.returns)
            assert not shares or name in operators.VIEWING | operators.WRITING, name
