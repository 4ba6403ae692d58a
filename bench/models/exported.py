"""Models saved by ``torch.export.save``: programs without Python code, and without train and eval modes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, must, one_line
from robench.models._archive import ArchiveError, read_records
from robench.models._operators import EVAL
from robench.models._program import Program, ProgramError, TrainModeError, read_program
from robench.models.weights import DAMAGED

_HARMLESS = "export it in eval mode after program.run_decompositions()"
"""What makes most honest programs readable: it leaves plain operators without inner functions."""


class Exported(nn.Module):
    """An exported program as a module; ``train`` and ``eval`` change nothing, since the mode was fixed by the export."""

    def __init__(
        self,
        program: nn.Module,
        shape: tuple[int, int, int] | None,
        sizes: tuple[int | str, ...] = (),
        limits: Mapping[str, tuple[int, int | None]] | None = None,
    ) -> None:
        super().__init__()
        self.program, self.shape = program, shape
        self.sizes, self.limits = sizes, dict(limits or {})

    @property
    def batch_sizes(self) -> tuple[int, int | None]:
        """Smallest and largest batch that the program was exported for; None: no limit is known."""
        first = self.sizes[0] if self.sizes else ""
        return (first, first) if isinstance(first, int) else self.limits.get(first, (1, None))

    def train(self, mode: bool = True) -> Exported:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.sizes:
            self._require_sizes(tuple(x.shape))
        logits: Tensor = self.program(x)
        return logits

    def _require_sizes(self, given: tuple[int, ...]) -> None:
        """The graph itself checks no sizes; with others than those of the export it could return wrong numbers.

        Raises:
            RuntimeError: As torch's own module does, so that the trial at the start finds the sizes that fit.
        """
        named: dict[str, int] = {}
        fits = len(given) == len(self.sizes)
        for got, wanted in zip(given, self.sizes, strict=False):
            if isinstance(wanted, int):
                fits &= got == wanted
                continue
            low, high = self.limits.get(wanted, (0, None))
            # torch writes 2 for "not specialised to 0 or 1"; such a program takes one image as well.
            fits &= named.setdefault(wanted, got) == got and (high is None or got <= high) and (low <= 2 or got >= low)
        if not fits:
            text = ", ".join(str(size) for size in self.sizes)
            remedy = "give images of that size; export with a dynamic batch dimension (torch.export.Dim)"
            raise RuntimeError(must("images for this exported program", f"of shape ({text})", given, remedy))


def load_exported(path: Path, *, trust: bool = False) -> Exported:
    """The program of a ``.pt2`` file as a module on the CPU; ``shape`` is that of one image of its example, or None.

    The file is read by a strict reader that executes nothing (``_archive``, ``_program``). What that reader does not know
    (compiled code, pickles, operators that are not on its list) is left to torch's own reader, with ``trust`` only, since
    that one can execute code.

    Raises:
        ModelError: The file is damaged, was exported in train mode, or needs ``trust``.
    """
    damaged = "export it again with this version of torch (torch.export.save)"
    try:
        program = read_program(read_records(path.read_bytes()))
    except TrainModeError as error:
        raise _in_train_mode(path, str(error)) from error
    except (ArchiveError, ProgramError) as error:
        if trust:
            return _load_trusted(path)
        whole = isinstance(error, ProgramError)
        expected = "free of code" if whole else "a whole exported program, as torch.export.save writes it"
        remedy = f"{_HARMLESS if whole else damaged}, or add --trust if you know where the file comes from"
        raise ModelError(must(f"{path}", expected, str(error), remedy)) from error
    except DAMAGED as error:
        raise ModelError(must(f"{path}", "a whole exported program", one_line(str(error), 160), damaged)) from error
    return _as_module(program)


def _as_module(program: Program) -> Exported:
    example = program.example
    shape = (example[1], example[2], example[3]) if len(example) == 4 else None
    return Exported(program.module, shape, program.sizes, program.limits)


def _load_trusted(path: Path) -> Exported:
    try:
        with _quiet():
            program = torch.export.load(path)
            # Guards are Python text in the file that torch would execute; the trial pass of load_model takes their place.
            module: nn.Module = program.module(check_guards=False)
    except DAMAGED as error:
        remedy = "export it again with this version of torch (torch.export.save)"
        raise ModelError(must(f"{path}", "a whole exported program", one_line(str(error), 160), remedy)) from error
    _require_eval(program.graph, path)
    return Exported(module, _example_shape(program.example_inputs))


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback of its own before it raises; the error that robench raises says enough."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _example_shape(example: Any) -> tuple[int, int, int] | None:
    args: tuple[Any, ...] = example[0] if example else ()
    if len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 4:
        _, channels, height, width = args[0].shape
        return (channels, height, width)
    return None


def _require_eval(graph: Any, path: Path) -> None:
    """Batch norm or dropout that were exported in train mode would make the output random or move buffers."""
    for node in graph.nodes:
        name = str(node.target).removeprefix("aten.").rpartition(".")[0]
        if name in EVAL and isinstance(node.target, torch._ops.OpOverload):
            places = [argument.name for argument in node.target._schema.arguments]
            switch, off = EVAL[name]
            if (dict(zip(places, node.args, strict=False)) | node.kwargs).get(switch, off) != off:
                raise _in_train_mode(path, name)


def _in_train_mode(path: Path, operator: str) -> ModelError:
    remedy = "call model.eval() and export it again"
    return ModelError(must(f"{path}", "exported in eval mode", f"{operator} in train mode", remedy))
