"""Lay ``_types/robench``, a tree of links in which mypy and pyright find the package's modules.

The editable install maps folders by an import hook, which type checkers do not run. Entries of ``bench/`` are linked
one by one, so run this again after a file was added there.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def folders(root: Path = ROOT) -> dict[str, str]:
    """Package → source folder, read from ``setup.py``."""
    for node in ast.parse((root / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["FOLDERS"]:
            found: dict[str, str] = ast.literal_eval(node.value)
            return found
    raise LookupError("setup.py holds no FOLDERS")


def lay(root: Path = ROOT) -> Path:
    """Make the tree anew and return it."""
    tree = root / "_types"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "robench").mkdir(parents=True)
    (tree / "robench" / "py.typed").touch()
    for package, folder in folders(root).items():
        if package == "robench":
            for entry in (root / folder).iterdir():
                if entry.name not in ("__pycache__", "py.typed"):
                    (tree / "robench" / entry.name).symlink_to(entry)
        else:
            (tree / Path(*package.split("."))).symlink_to(root / folder)
    return tree


if __name__ == "__main__":
    lay()
