"""The frozen values that the whole of robench speaks in. Standard library only."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

from robench.errors import ConfigError, must, suggestion

SCHEMA = 3
"""Version of cells, rows and headers on disk; a store written by a newer one is refused."""

NORMS = ("linf", "l2", "l1", "l0")
WIDTHS = (16, 32, 64, 128, 256)
"""Padded batch widths the protocol allows."""
PRECISIONS = ("float32", "tf32", "bfloat16")
"""Precisions in which protocols may search."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.IGNORECASE)
"""A decimal number; a longer exponent would make ``Fraction`` build a number of as many digits."""
_UNREADABLE = (TypeError, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError)
"""What reading a text as a literal raises; ``ast`` tells of too deep a nesting by the last two."""


def number(text: str) -> float:
    """A finite number from a decimal (``0.03``, ``1e-2``) or a ratio of two (``8/255``, ``2.5/255``).

    Raises:
        ValueError: Any other text, a division by 0, or a value that a float cannot hold.
    """
    parts = [part.strip() for part in text.split("/")]
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError("no number and no ratio of two numbers")
    try:
        value = float(Fraction(parts[0]) / Fraction(parts[1]) if len(parts) == 2 else Fraction(parts[0]))
    except (ZeroDivisionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return value


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256(data: bytes | str) -> str:
    """Hexadecimal SHA-256 of bytes or of a text's UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


@dataclass(frozen=True)
class Ref:
    """A name with keyword arguments, ``apgd(steps=100, loss='dlr')``; canonical as a string."""

    name: str
    """Entry of a catalog table; may carry a prefix, as in ``art:ProjectedGradientDescent``."""
    args: tuple[tuple[str, Any], ...] = ()
    """Sorted (key, literal) pairs."""

    @classmethod
    def of(cls, name: str, /, **args: Any) -> Ref:
        """A reference from Python values."""
        return cls(name, tuple(sorted((k, _freeze(v)) for k, v in args.items())))

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read ``name`` or ``name(key=literal, ...)``; nothing is evaluated.

        Raises:
            ConfigError: The text is not a name with keyword-only literals.
        """
        head, paren, tail = text.strip().partition("(")
        if not paren:
            if not head:
                raise ConfigError(must("a reference", "a name such as pgd(steps=40)", text, "write a name"))
            return cls(head)
        try:
            call = ast.parse(f"f({tail}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
                raise ValueError("positional")
            found = {str(k.arg): _literal(k.value) for k in call.keywords}
            if len(found) < len(call.keywords):
                raise ValueError("an argument is given twice")
            return cls.of(head.strip(), **found)
        except _UNREADABLE as error:
            raise ConfigError(
                must("a reference", "name(key=literal, ...)", text[:200], "give arguments by keyword, strings in quotes")
            ) from error

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        """The arguments as a dictionary."""
        return dict(self.args)

    def with_defaults(self, defaults: dict[str, Any]) -> Ref:
        """The same reference with every missing argument filled in."""
        return Ref.of(self.name, **{**defaults, **self.kwargs})

    def replaced(self, **args: Any) -> Ref:
        """The same reference with these arguments in place of its own."""
        return Ref.of(self.name, **{**self.kwargs, **args})

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.args)
        return f"{self.name}({inner})" if inner else self.name


def _freeze(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(must("an argument", "a number, string, bool, None or list of them", value, "use literals"))


def _literal(node: ast.expr) -> Any:
    """A literal; a ratio of two numbers (``8/255``) is read as the float it means."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return number(f"{_literal(node.left)}/{_literal(node.right)}")
    value = ast.literal_eval(node)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not finite")
    return value


@dataclass(frozen=True)
class ThreatModel:
    """What an adversary may do: ``linf(8/255)``. Pixels are in [0, 1]."""

    norm: str
    """``linf``, ``l2``, ``l1`` or ``l0``."""
    eps: float
    """Radius in pixel units of [0, 1]; ``inf`` is the whole box."""
    text: str
    """Eps as typed, kept for display and identity (``8/255``)."""
    targeted: bool = False
    access: str = "white"
    """``white``, ``score``, ``decision`` or ``transfer``."""
    queries: int | None = None
    """Forward passes allowed per sample; None is unlimited."""

    @classmethod
    def parse(cls, text: str) -> ThreatModel:
        """Read ``norm(eps)``; eps is a number, a ratio or ``inf``.

        Raises:
            ConfigError: Unknown norm, eps that is no number, negative, or given in 0..255 units.
        """
        norm, _, rest = text.strip().partition("(")
        typed = rest.removesuffix(")").strip()
        if norm not in NORMS or not rest.endswith(")"):
            raise ConfigError(must("a threat model", "norm(eps) with norm in " + "|".join(NORMS), text, "e.g. linf(8/255)"))
        try:
            eps = math.inf if typed == "inf" else number(typed)
        except ValueError as error:
            raise ConfigError(must("eps", "a number or ratio, not too large", typed[:80], "e.g. linf(8/255)")) from error
        if not eps >= 0:
            raise ConfigError(must("eps", "at least 0", typed, "e.g. linf(8/255)"))
        if norm == "linf" and 1 < eps < math.inf:
            raise ConfigError(must("eps of linf", "in [0, 1] (pixels are in [0, 1])", typed, f"did you mean {typed}/255?"))
        return cls(norm, eps, typed)

    def at(self, typed: str) -> ThreatModel:
        """The same norm at another eps."""
        return ThreatModel.parse(f"{self.norm}({typed})")

    def __str__(self) -> str:
        return f"{self.norm}({self.text})"


@dataclass(frozen=True)
class DatasetSpec:
    """Facts about a data set; sample ids are stable integers of the source."""

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    """(channels, height, width)."""
    splits: tuple[str, ...]
    licence: str = ""
    citation: str = ""
    sha256: str = ""
    """Hash of the content as loaded (images and labels)."""
    order: str = ""
    """Where the indices of the classes come from, for people; empty where they are the data set's own by definition."""
    used: tuple[int, ...] = ()
    """Indices of the classes that the data set has images of, where ``classes`` are a model's; else empty."""
    open_classes: bool = False
    """Whether a model may have more outputs than ``classes``, since a class map names only some."""
    notes: tuple[str, ...] = ()
    """What reading the data set has to say: what was left out, turned or cut."""


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model; normalisation lives inside it, so that it takes pixels in [0, 1]."""

    arch: Ref
    num_classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input_range: tuple[float, float] = (0.0, 1.0)
    """Range the bare network expects before mean/std; the wrapper maps [0, 1] to it."""
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()
    """What was done to the model so that it takes float32 images in batches and returns logits, in words."""


@dataclass(frozen=True)
class Settings:
    """Settings that change numbers; part of every cell's digest."""

    width: int = 64
    """Padded batch width of every forward."""
    search_precision: str = "float32"
    """Precision in which protocols search; what they find is confirmed in float32. TF32 is CUDA's, and float32 elsewhere."""

    def __post_init__(self) -> None:
        if self.search_precision not in PRECISIONS:
            got, expected = self.search_precision, "one of " + ", ".join(PRECISIONS)
            raise ConfigError(must("search precision", expected, got, suggestion(got, PRECISIONS)))
        if self.width not in WIDTHS:
            raise ConfigError(must("width", f"one of {WIDTHS}", self.width, "choose a listed width"))


@dataclass(frozen=True)
class Artifact:
    """Something that is built and kept (a model, images), named by its lineage, not by its content."""

    kind: str
    """``model`` or ``data``."""
    builder: Ref
    """Entry of the builder table with all arguments filled in."""
    version: str = "1"
    """The builder's version; a new one makes a new artifact."""
    inputs: tuple[Artifact, ...] = ()
    label: str = ""
    """Name shown in tables; not part of the identity."""
    stored: bool = False
    """Whether it is built once and kept in the run directory, or loaded anew from its source."""

    @cached_property
    def digest(self) -> str:
        """Lineage digest: builder, version, arguments and the inputs' digests; known before building."""
        return sha256(canonical([SCHEMA, self.kind, str(self.builder), self.version, [i.digest for i in self.inputs]]))


@dataclass(frozen=True)
class Cell:
    """The unit of work, of resume and of distribution: one scenario on one model and one set of images."""

    scenario: Ref
    """Entry of the scenario table with all arguments filled in."""
    version: str
    """Versions of the scenario and of every plug-in it names, joined."""
    model: Artifact
    data: Artifact
    condition: str = ""
    """Chain of conditions for display, e.g. ``prune(amount=0.5)``."""
    extra: tuple[Artifact, ...] = ()
    """Further artifacts the scenario needs: surrogates, the parent of a compressed model, training images."""
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    """Index and count of the slice of samples this cell covers."""
    settings: Settings = field(default_factory=Settings)

    @cached_property
    def digest(self) -> str:
        """Identity of the cell's numbers; device, workers and batch size stay out of it."""
        parts = [
            SCHEMA, str(self.scenario), self.version, self.model.digest, self.data.digest, self.condition,
            [e.digest for e in self.extra], self.seed, list(self.shard), asdict(self.settings),
        ]  # fmt: skip
        return sha256(canonical(parts))

    def artifacts(self) -> tuple[Artifact, ...]:
        """What must be there before the cell can run."""
        return (self.model, self.data, *self.extra)


@dataclass(frozen=True)
class Context:
    """Where and how a cell runs; none of it changes numbers beyond the promises on determinism."""

    root: str
    """The run directory, which holds ``artifacts/``."""
    device: str = "cpu"
    batch_size: int = 256
    """How many samples are held at once."""
    threads: int = 1
    trust: bool = False
    """Whether code named by the user may be executed."""
    sources: tuple[tuple[str, str], ...] = ()
    """Content-addressed files of the user: (sha256, path)."""
    code: tuple[tuple[str, str], ...] = ()
    """Files of code that must be as they were when the run was planned: (path, sha256)."""


@dataclass(frozen=True)
class Estimate:
    """What every metric returns."""

    value: float
    low: float
    high: float
    n: int
    kind: str = "interval"
    """``interval`` (95 % unless said), or ``exact`` where low and high do not apply."""

    @classmethod
    def exact(cls, value: float, n: int = 1) -> Estimate:
        """A number without sampling error, such as bytes."""
        return cls(float(value), math.nan, math.nan, n, "exact")

    def __str__(self) -> str:
        if self.kind == "exact":
            return f"{self.value:g}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] (n={self.n})"


def as_dict(value: Any) -> dict[str, Any]:
    """A frozen value as plain data for JSON headers (cached digests left out)."""
    return {f.name: getattr(value, f.name) for f in fields(value)}
