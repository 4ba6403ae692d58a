"""Memory that a forward pass adds to a process of its own: a child process, forked anew for every model."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor, nn

from robench.children import Child
from robench.errors import ModelError, must

_UNPICKLABLE = (PicklingError, AttributeError, TypeError, RuntimeError, NotImplementedError)
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError, OSError, EOFError)
_REMEDY = "define the model's classes in an importable module, or read peak_tensor_bytes"


def resident_bytes(model: nn.Module, x: Tensor, *, threads: int = 1) -> int:
    """Most memory (resident set) that loading a model and one forward of x add to a fresh process, in bytes.

    The process has imported torch and multiplied and convolved once before the first look, so that the library's own
    memory is not counted; kernels and libraries that this model needs besides are. Linux only.

    Args:
        model: Takes x on the CPU; it travels by pickle.
        x: Images (N, C, H, W).
        threads: Intra-op threads of the process.

    Raises:
        ModelError: The model cannot be pickled or loaded elsewhere, or the system does not tell a process's memory.
    """
    with tempfile.TemporaryDirectory(prefix="robench-") as folder:
        path = Path(folder) / "model.pt"
        try:
            torch.save((model, x), path)
        except _UNPICKLABLE as error:
            raise ModelError(must("a model in a process of its own", "picklable", str(error)[:120], _REMEDY)) from error
        found = _asked({"path": str(path), "threads": threads})
    if "error" in found:
        raise ModelError(must("a model in a process of its own", "loadable and runnable", found["error"], _REMEDY))
    return max(0, int(found["peak"]) - int(found["baseline"]))


def _asked(question: Mapping[str, Any]) -> dict[str, Any]:
    """The server's answer; one that died is started again once."""
    answer = _server(os.getpid()).call(forked, question)
    if answer.gone:
        _server.cache_clear()
        answer = _server(os.getpid()).call(forked, question)
    found: dict[str, Any] = {"error": answer.error} if answer.error else answer.value
    return found


@lru_cache(maxsize=1)
def _server(owner: int) -> Child:
    """The measuring process of this process; it ends with its owner, and keeps no freed memory, as most processes do."""
    return Child(preload=["robench.resident"], keep=False)


def forked(question: Mapping[str, Any]) -> dict[str, Any]:
    """What a forked copy of this process measures, so that every model meets the same memory."""
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):  # whatever happens, the copy does not go on as the server
            os.write(start, json.dumps(_measured(question)).encode())
        os._exit(0)
    os.close(start)
    with os.fdopen(end) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(text) if text else {"error": f"the process ended with status {status}"}
    return found


def _measured(question: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(int(question["threads"]))
    with torch.inference_mode():
        torch.nn.functional.conv2d(torch.zeros(1, 8, 8, 8), torch.zeros(8, 8, 3, 3))
        torch.zeros(8, 8) @ torch.zeros(8, 8)
        try:
            baseline = _status("VmRSS")
            # The file was written a moment ago by the process that asked, and holds what that process had loaded.
            model, x = torch.load(question["path"], weights_only=False)
            model(x)
            return {"baseline": baseline, "peak": _status("VmHWM")}
        except _FAILURES as error:
            return {"error": f"{type(error).__name__}: {error}"[:200]}


def _status(key: str) -> int:
    """A figure of this process in bytes, e.g. its resident set now or at most."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key} in /proc/self/status")
