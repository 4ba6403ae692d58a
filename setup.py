"""Packages are found here, so that a new sub-package cannot be forgotten in the wheel."""

from setuptools import find_packages, setup

FOLDERS = {
    "robench": "bench",
    "robench.attacks": "attacks",
    "robench.defenses": "defenses",
    "robench.reports": "reports",
}

setup(
    packages=[p for name, folder in FOLDERS.items() for p in [name, *(f"{name}.{s}" for s in find_packages(folder))]],
    package_dir=FOLDERS,
)
