"""Loading a user's model: every form works, and every kind of damage is told with a remedy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from robench.errors import ConfigError, ModelError
from robench.models import Normalised, fresh, load_model, weights_sha256

ARCH = "small_cnn(width=4)"
FACTORY = "from robench.models import fresh\n\ndef make():\n    return fresh('small_cnn(width=4)', seed=5)\n"
X = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    return fresh(ARCH, seed=5)


@pytest.fixture
def weights(net: nn.Module, tmp_path: Path) -> Path:
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def export(model: nn.Module, path: Path, *, dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("n", min=1, max=4096)},) if dynamic else None
    torch.export.save(torch.export.export(model, (torch.rand(4, 1, 32, 32),), dynamic_shapes=shapes), path)
    return path


def test_safetensors(net: nn.Module, weights: Path) -> None:
    model, spec = load_model(str(weights), arch=ARCH)
    assert torch.equal(model(X), net(X)) and not model.training
    assert weights_sha256(model) == weights_sha256(net)
    assert str(spec.arch) == "small_cnn(in_channels=1, num_classes=10, size=32, width=4)" and spec.shape == (1, 32, 32)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"net": s, "acc": 93.1},
        lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
        lambda s: {"model_state_dict": s, "ema": {k: v * 0 for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": {"state_dict": s, "epoch": 3}, "ema": {"state_dict": {k: v * 0 for k, v in s.items()}}},
        lambda s: {"best": {"weights": s}, "epoch": 3},
    ],
    ids=[
        "plain",
        "state_dict",
        "net",
        "model",
        "beside averages",
        "parallel",
        "compiled",
        "both",
        "lightning",
        "nested",
        "nested once",
    ],
)
def test_state_dicts_of_torch(net: nn.Module, tmp_path: Path, wrap) -> None:
    torch.save(wrap(net.state_dict()), tmp_path / "net.pt")
    assert torch.equal(load_model(str(tmp_path / "net.pt"), arch=ARCH)[0](X), net(X))


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda s: {"a": s, "b": s, "epoch": 3}, r"'a', 'b', 'epoch'"),
        (lambda s: {"state_dict": s, "model": s}, r"'state_dict', 'model'"),
        (lambda s: {"epoch": 3, "args": {}}, r"'epoch', 'args'.*none"),
        (lambda s: {"best": {"weights": s}, "last": {"weights": s}}, r"'best\.weights', 'last\.weights'"),
    ],
)
def test_a_checkpoint_that_can_be_read_in_two_ways_is_refused(net: nn.Module, tmp_path: Path, wrap, named: str) -> None:
    torch.save(wrap(net.state_dict()), tmp_path / "net.pt")
    with pytest.raises(ModelError, match=named):
        load_model(str(tmp_path / "net.pt"), arch=ARCH)


def test_averaged_copies_beside_the_weights_are_named(net: nn.Module, tmp_path: Path) -> None:
    state = net.state_dict()
    torch.save({"state_dict": state, "state_dict_ema": {k: v * 0 for k, v in state.items()}}, tmp_path / "net.pt")
    (note,) = load_model(str(tmp_path / "net.pt"), arch=ARCH)[1].notes
    assert "from the entry 'state_dict' of the file; it also holds 'state_dict_ema', not measured" in note
    torch.save({"state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}, tmp_path / "net.pt")
    assert "also" not in load_model(str(tmp_path / "net.pt"), arch=ARCH)[1].notes[0]


def test_checkpoints_of_the_imagenet_example_are_read(net: nn.Module, tmp_path: Path) -> None:
    """What it saves: DataParallel's names, the best accuracy as a tensor, the states of optimizer and scheduler."""
    state = {f"module.{k}": v for k, v in net.state_dict().items()}
    more = {"epoch": 90, "arch": "resnet18", "best_acc1": torch.tensor(69.8), "scheduler": {"step_size": 30}}
    torch.save({**more, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "best.pth.tar")
    assert torch.equal(load_model(str(tmp_path / "best.pth.tar"), arch=ARCH)[0](X), net(X))
    with pytest.raises(ConfigError, match=r"FILE\.pth, FILE\.pth\.tar"):
        load_model("best.tar", arch=ARCH)


@pytest.mark.parametrize(("own", "seen", "told"), [(1, 3, "grey"), (3, 1, "colour")])
def test_grey_weights_for_colour_images_are_told_how_to_read_the_images(tmp_path: Path, own, seen, told) -> None:
    safetensors.torch.save_file(fresh(f"{ARCH[:-1]}, in_channels={own})", seed=0).state_dict(), tmp_path / "n.safetensors")
    with pytest.raises(ModelError, match=rf"the weights take {told} images.*folder:DIR\(channels={own}\)"):
        load_model(str(tmp_path / "n.safetensors"), arch=ARCH, shape=(seen, 32, 32))
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "n.safetensors"), arch="small_cnn(width=8)", shape=(own, 32, 32))
    assert "channels=" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(net: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({k: v.to(dtype) for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    with pytest.raises(ModelError, match=f"of {str(dtype).removeprefix('torch.')} instead of float32"):
        load_model(str(tmp_path / "net.pt"), arch=ARCH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_width_are_cast_and_told(net: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({k: v.to(dtype) for k, v in net.state_dict().items()}, tmp_path / "net.pt")
    model, spec = load_model(str(tmp_path / "net.pt"), arch=ARCH)
    assert model(X).dtype == torch.float32 and torch.allclose(model(X), net(X), atol=0.05)
    assert any(f"{str(dtype).removeprefix('torch.')} weights become float32" in note for note in spec.notes)


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0), (0.5, 0.5)])
def test_a_mean_of_other_channels_than_the_images_is_refused(weights: Path, mean: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"one per channel \(1\)"):
        load_model(str(weights), arch=ARCH, mean=mean, std=tuple(1.0 for _ in mean))


def test_normalisation_lies_inside(net: nn.Module, weights: Path) -> None:
    model, spec = load_model(str(weights), arch=ARCH, mean=(0.5,), std=(0.25,), input_range=(0.0, 1.0))
    assert isinstance(model, Normalised) and spec.mean == (0.5,) and spec.std == (0.25,)
    assert torch.allclose(model(X), net((X - 0.5) / 0.25))


def test_classes_channels_and_size_are_filled_in(tmp_path: Path) -> None:
    net = fresh("mlp(num_classes=3, in_channels=3, size=8)", seed=0)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "n.safetensors")
    model, spec = load_model(str(tmp_path / "n.safetensors"), arch="mlp", num_classes=3, shape=(3, 8, 8))
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3) and spec.shape == (3, 8, 8)


def test_exported_program_runs_at_any_width_and_survives_eval(net: nn.Module, tmp_path: Path) -> None:
    model, spec = load_model(str(export(net, tmp_path / "net.pt2")))
    model.eval()
    model.train()
    x = X.clone().requires_grad_()
    assert torch.allclose(model(x), net(X)) and spec.shape == (1, 32, 32)
    assert torch.allclose(torch.autograd.grad(model(x).sum(), x)[0], torch.autograd.grad(net(x).sum(), x)[0])
    assert weights_sha256(model)


def test_exported_program_of_one_batch_size_is_asked_in_parts(net: nn.Module, tmp_path: Path) -> None:
    model, _ = load_model(str(export(net, tmp_path / "net.pt2", dynamic=False)))
    for count in (1, 3, 4, 9):
        x = torch.rand(count, 1, 32, 32)
        assert torch.allclose(model(x), net(x), atol=1e-6)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(1), nn.Dropout(0.5)])
def test_program_exported_in_train_mode_is_refused(layer: nn.Module, tmp_path: Path) -> None:
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(1024, 10)).train()
    with pytest.raises(ModelError, match="exported in eval mode"):
        load_model(str(export(net, tmp_path / "net.pt2")))


@pytest.mark.parametrize(
    ("change", "note"),
    [("m.half()", "float16"), ("m.double()", "float64"), ("lambda x: (m(x), x)", ""), ("m.train()", "")],
)
def test_a_factorys_odd_model_is_made_plain_and_told(tmp_path: Path, net: nn.Module, change: str, note: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FACTORY + f"\ndef odd():\n    m = make()\n    return {change}\n")
    model, spec = load_model(f"{path}:odd", trust=True, shape=(1, 32, 32))
    assert model(X).dtype == torch.float32 and torch.allclose(model(X), net(X), atol=1e-2)
    assert note in " ".join(spec.notes) and bool(spec.notes) == bool(note)


def test_a_program_that_standardises_each_image_passes_the_trial(tmp_path: Path, net: nn.Module) -> None:
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))

    model, _ = load_model(str(export(Standardised(), tmp_path / "net.pt2")))
    assert torch.allclose(model(X), Standardised()(X), atol=1e-5)


def test_factories_need_trust(tmp_path: Path, net: nn.Module) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    with pytest.raises(ModelError, match="add --trust"):
        load_model(f"{path}:make")
    with pytest.raises(ModelError, match="add --trust"):
        load_model("robench.models._mlp:mlp")
    model, _ = load_model(f"{path}:make", trust=True)
    assert torch.equal(model(X), net(X))
    model, _ = load_model("robench.models._mlp:mlp", trust=True, shape=(1, 32, 32))
    assert model(X).shape == (3, 10) and not model.training


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("def make(", "importable"),
        ("import no_such_module_here", "importable"),
        ("make = 3", "a function"),
        ("def make():\n    return 3\n", "torch.nn.Module"),
        ("def make():\n    return {}['x']\n", "KeyError"),
        ("def make(path):\n    return path\n", "callable without arguments"),
    ],
)
def test_broken_factories_are_told(tmp_path: Path, code: str, part: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(ModelError, match=part):
        load_model(f"{path}:make", trust=True)


def test_damaged_files_are_told(weights: Path, net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pt")
    for source in (weights, tmp_path / "net.pt", export(net, tmp_path / "net.pt2")):
        whole = source.read_bytes()
        for part in (whole[: len(whole) // 2], b"", b"not a model"):
            source.write_bytes(part)
            with pytest.raises(ModelError, match=r"must be .*; (copy|save|export)"):
                load_model(str(source), arch=ARCH)


def test_whole_pickled_models_are_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="state_dict"):
        load_model(str(tmp_path / "whole.pt"), arch=ARCH)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="a state dict"):
        load_model(str(tmp_path / "list.pt"), arch=ARCH)


def test_weights_that_do_not_fit_are_named(weights: Path) -> None:
    with pytest.raises(ModelError, match=r"0\.weight \(4, 1, 3, 3\) instead of \(8, 1, 3, 3\).*--arch"):
        load_model(str(weights), arch="small_cnn(width=8)")
    with pytest.raises(ModelError, match=r"missing.*and \d+ more"):
        load_model(str(weights), arch="mlp")


def test_weights_that_are_not_finite_are_named(net: nn.Module, tmp_path: Path) -> None:
    state = net.state_dict()
    state["2.bias"][1] = float("nan")
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match=r"'2\.bias'.*finite"):
        load_model(str(tmp_path / "nan.safetensors"), arch=ARCH)


def test_hash_of_the_file_is_checked(weights: Path) -> None:
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    load_model(str(weights), arch=ARCH, sha256=right)
    with pytest.raises(ModelError, match=right):
        load_model(str(weights), arch=ARCH, sha256="0" * 64)


def test_wrong_number_of_classes_is_told(net: nn.Module, tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match=r"logits \(64, 7\)"):
        load_model(str(export(net, tmp_path / "n.pt2")), num_classes=7)
    with pytest.raises(ModelError, match="instead of"):
        load_model(str(weights), arch=ARCH, num_classes=7)


def test_logits_that_are_not_finite_are_told(weights: Path) -> None:
    with pytest.raises(ModelError, match="logits must be finite"):
        load_model(str(weights), arch=ARCH, mean=(0.0,), std=(1e-45,))


@pytest.mark.parametrize(
    ("source", "arch", "kind", "part"),
    [
        ("there/is/none.safetensors", ARCH, ModelError, "check the path"),
        ("there/is/none.py:make", None, ModelError, "the Python file of the model's factory must be there"),
        ("something", None, ConfigError, "FILE.safetensors"),
        ("net.safetensors", None, ModelError, "check the path"),
        ("net.safetensors", "smal_cnn", ConfigError, "did you mean 'small_cnn'"),
    ],
)
def test_impossible_sources_are_told(source: str, arch: str | None, kind: type[Exception], part: str) -> None:
    with pytest.raises(kind, match=part):
        load_model(source, arch=arch, trust=True)


def test_weights_without_an_architecture_are_told(weights: Path) -> None:
    with pytest.raises(ConfigError, match="--arch"):
        load_model(str(weights))


def test_counts_of_profilers_are_left_out_and_told(net: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    counts = {"module.total_ops": torch.zeros(1), "total_params": torch.zeros(1), "module.0.total_ops": torch.zeros(1)}
    torch.save({"state_dict": {**counts, **state}}, tmp_path / "net.pt")
    model, spec = load_model(str(tmp_path / "net.pt"), arch=ARCH)
    assert torch.equal(model(X), net(X))
    assert any("leaves out 3 entries of the file that are no weights (total_ops, total_params)" in n for n in spec.notes)


@pytest.mark.parametrize("arch", [None, ARCH])
@pytest.mark.parametrize("kind", ["scripted", "pickled"])
def test_a_pt_file_that_is_no_state_dict_says_what_it_is(tmp_path: Path, arch: str | None, kind: str) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    (torch.jit.script(module).save if kind == "scripted" else lambda path: torch.save(module, path))(tmp_path / "net.pt")
    told = "a TorchScript archive.*torch.jit.load" if kind == "scripted" else "a pickled object of torch.nn.*Sequential"
    with pytest.raises(ModelError, match=told):
        load_model(str(tmp_path / "net.pt"), arch=arch)


def test_a_factory_whose_file_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text("def make():\n    return open('weights-that-are-not-there.pt')\n")
    with pytest.raises(ModelError, match=r"did you mean 'nets\.py'\? in"):
        load_model(f"{tmp_path / 'net.py'}:make", trust=True)
    with pytest.raises(ModelError, match=r"FileNotFoundError.*Path\(__file__\)\.parent"):
        load_model(f"{tmp_path / 'nets.py'}:make", trust=True)
