"""Groups of samples from a file of the user's."""

from __future__ import annotations

from robench.data.subsets import read_groups
from robench.registry import facts
from robench.spec import Artifact, Context


@facts(version=1, kind="groups")
def groups(artifact: Artifact, context: Context, *, path: str = "") -> dict[int, str]:
    """Sample id → group, from the file that the plan read; its content is part of the artifact's version."""
    return read_groups(path)
