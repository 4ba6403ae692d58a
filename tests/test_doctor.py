"""Doctor: what is there, what is missing and how to get it."""

from __future__ import annotations

from importlib import metadata

from robench import doctor


def found() -> dict[str, tuple[str, bool]]:
    return {name: (state, good) for name, state, good in doctor.findings()}


def test_versions_devices_precision_and_disk_are_named():
    everything = found()
    assert everything["torch"] == (metadata.version("torch"), True)
    assert {"python", "cores", "cuda", "precision", "free disk", "numpy", "captum"} <= set(everything)
    assert "GiB" in everything["free disk"][0]


def test_missing_packages_say_how_to_get_them(monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("captum", "torchvision"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    everything = found()
    assert everything["captum"] == ("missing: pip install captum", False)
    assert everything["torchvision"][1] and "pip install torchvision" in everything["torchvision"][0]


def test_broken_torchvision_does_not_matter(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    state, good = found()["torchvision"]
    assert good and "broken and not used" in state and "torchvision::nms" in state


def test_full_disk_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 2**20)
    state, good = found()["free disk"]
    assert not good and "--out" in state
