"""The command line. Heavy imports live inside the commands, so that help answers at once."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from robench import __version__
from robench.errors import LINE, ConfigError, RobenchError, described, must, one_line
from robench.escape import visible_lines
from robench.progress import WARNING, Line, is_terminal
from robench.screen import ORDINARY, screen_width, wrapped_lines

FORMATS = click.Choice(["table", "json", "csv", "md"])
FAILED_CELLS = 3
INTERRUPTED = 130
BROKEN_PIPE = 141
"""As a shell tells a program that SIGPIPE ended."""
UNEXPECTED = 70
"""EX_SOFTWARE of sysexits.h: an error of robench's own."""


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF)


def _print(text: str, *, err: bool = False, nl: bool = True, whole: bool = False, indent: int = 2) -> None:
    """Print lines that may hold names and texts of others: what a terminal would obey is written out.

    Args:
        text: One line or several.
        err: Whether on stderr.
        nl: Whether a line break follows.
        whole: Whether lines stay as they are where the screen is narrower, as other programs' input must.
        indent: Blanks before the further lines of one that is broken.
    """
    width = None if whole else screen_width(sys.stderr if err else sys.stdout)
    click.echo(wrapped_lines(visible_lines(text), width, indent=indent), err=err, nl=nl)


def _telling() -> tuple[Line, Callable[[str], None]]:
    """A line of progress on stderr, and how other lines are printed there while it stands."""
    line = _line()

    def say(text: str) -> None:
        line.clear()
        _print(text, err=True)

    return line, say


def _line() -> Line:
    """A line of progress on stderr; an error that ends the command takes it off first."""
    line: Line = click.get_current_context().meta.setdefault(_PROGRESS, Line())
    return line


def _works_on(folder: Path) -> Path:
    """The folder, which is from now on the one whose details of an unexpected error belong to the command."""
    click.get_current_context().meta[_FOLDER] = folder
    return folder


_FOLDER, _PROGRESS = "robench.run_directory", "robench.progress"
"""Keys of the command's context."""


class _Group(click.Group):
    """Turns whatever ends a command into one line on stderr and an exit code; there is never a traceback."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        """As a program: open standard streams, an orderly end at Ctrl-C, a second one at once."""
        _hold_standard_streams()
        signal.signal(signal.SIGINT, _Interrupts())
        try:
            self.main(*args, **more)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run a command line and exit with its code."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **more)  # type: ignore[call-overload]  # what click passes on
        try:
            code = super().main(*args, standalone_mode=False, **more) or 0  # type: ignore[call-overload]
            sys.stdout.flush()
        except BaseException as error:  # noqa: BLE001  the last door: what comes here is told and never a traceback
            code = _told(error)
        sys.exit(_flushed(code))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises is told with the folder that it worked on."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except BaseException as error:  # noqa: BLE001  as above
            if _PROGRESS in ctx.meta:
                ctx.meta[_PROGRESS].clear()
            ctx.exit(_told(error, ctx.meta.get(_FOLDER)))


class _Interrupts:
    """Handles Ctrl-C: the first one unwinds the program, a second one ends it at once; child processes follow."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, signum: int, frame: Any) -> None:
        if self.seen:
            os._exit(INTERRUPTED)
        self.seen = True
        raise KeyboardInterrupt


def _told(error: BaseException, folder: Path | None = None) -> int:
    """Say in one line what ended a command that worked on a folder, and give its exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _say("interrupted; the same command goes on where it stopped")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "robench"
        _say(f"{error.format_message()} (see `{where} --help`)")
        return error.exit_code
    if isinstance(error, RobenchError):
        _say(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and not error.filename:
        _say(must("stdout", "writable", error.strerror, "free space, or write elsewhere"))
        return ConfigError.exit_code
    _say(f"unexpected error: {one_line(described(error), 200)}; details in {_logged(error, folder)}; please report it")
    return UNEXPECTED


def _end(code: int) -> None:
    """End the command with an exit code; ``SystemExit`` itself is only raised by code that robench was given."""
    raise click.exceptions.Exit(code)


def _say(text: str) -> None:
    with suppress(OSError):  # nowhere to say it
        _print(f"robench: {one_line(text, LINE)}", err=True, whole=not is_terminal(sys.stderr))


def _logged(error: BaseException, folder: Path | None) -> str:
    """The path of a new private file with the traceback of an error: in the run directory, else in the temporary folder."""
    own = folder if folder is not None and (folder / "run.json").is_file() and os.access(folder, os.W_OK) else None
    try:
        handle, path = tempfile.mkstemp(prefix="robench-", suffix=".log", dir=own)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(" ".join(sys.argv) + "\n\n" + "".join(traceback.format_exception(error)))
    except OSError as reason:
        return f"no file ({reason.strerror})"
    return path


def _flushed(code: Any) -> Any:
    """The exit code after everything printed has left; 2 or 141 where it could not."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:
        code = _told(error)
    else:
        return code
    null = os.open(os.devnull, os.O_WRONLY)  # what is still buffered must not fail again at the interpreter's end
    with suppress(OSError, ValueError):
        os.dup2(null, sys.stdout.fileno())
    return code


def _hold_standard_streams() -> None:
    """Open closed standard streams on nothing, so that no file of the run takes their place."""
    descriptor = 0
    while descriptor < 3:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  until the process ends


class _Quiet(logging.Filter):
    """Passes what robench says; libraries' remarks are for ``--verbose``."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.partition(".")[0] == "robench"


@click.group(cls=_Group, context_settings={"auto_envvar_prefix": "ROBENCH", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="robench")
@click.option("-v", "--verbose", is_flag=True, help="Tell more on stderr.")
def main(verbose: bool) -> None:
    """Can an image model be trusted? Robustness, interpretability and generalization, judged soundly."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="robench: %(message)s")
    logging.captureWarnings(True)
    if not verbose:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_Quiet())


class _Folder(click.Path):
    """A folder's name; the empty text, which Python takes for the current folder, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise ConfigError(must("--out", "the name of a folder", value, "leave it out for a new folder under runs/"))
        return super().convert(value, param, ctx)


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(must("a list of numbers", "such as 0.49,0.48,0.45", text, "separate them by commas")) from error


@main.command()
@click.option(
    "--suite",
    default="full",
    show_default=True,
    help="smoke, quick, standard, full, corruption, scarcity, scarcity-cifar10, compression, or a YAML file.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Zoo name, FILE.safetensors, .pt, .pth, .pth.tar, .pt2, trained(...), module:factory (--trust); NAME=... names it.",
)
@click.option("--arch", default="", help="Architecture of a weights file, e.g. 'resnet18(num_classes=10)'.")
@click.option("--mean", default="0", help="Per-channel mean that the network expects to be subtracted.")
@click.option("--std", default="1", help="Per-channel standard deviation it expects to be divided by.")
@click.option("--input-range", default="0,1", help="Range of the network's pixels before mean and std.")
@click.option("--num-classes", type=click.IntRange(min=2), help="Logits of the model [default: those of the data].")
@click.option("--data", help="digits, cifar10(root='...'), mnist(root='...'), folder:PATH, npz:PATH.")
@click.option("--classes", help="The models' class names in the order of their outputs: FILE, one per line or JSON.")
@click.option("--class-map", help="Output per class of the data: FILE with lines NAME,INDEX or JSON; or 'numbers'.")
@click.option("--attack", "attacks", multiple=True, help="Replace the suite's attacks, e.g. 'pgd(steps=100)'.")
@click.option("--threat", "threats", multiple=True, help="Replace the suite's threats, e.g. 'linf(8/255)'.")
@click.option("--defense", "defenses", multiple=True, help="Add each model behind an inference-time defence.")
@click.option(
    "--chain", "chains", multiple=True, help="Add a crossing, e.g. 'prune(0.7) | corruption(fog, 3) | attack(fgsm)'."
)
@click.option("--shift", "shifts", multiple=True, help="Add a shifted test set, NAME=folder:PATH, with some of the classes.")
@click.option("--groups", help="CSV file 'sample,group': accuracy of the worst group of test images.")
@click.option("--ood", multiple=True, help="Add images of other kinds: 'glyphs', 'noise', ..., or NAME=folder:PATH.")
@click.option("--scenario", "scenarios", multiple=True, help="Only these: clean, evasion, corruption, scarcity, ...")
@click.option("--out", type=_Folder(path_type=Path), help="Run directory; the same one resumes.")
@click.option("--limit", type=click.IntRange(1), help="Test images (marks the run as limited).")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N")
@click.option("--workers", type=click.IntRange(1), help="Processes [default: one per core on CPU].")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Samples held at once.")
@click.option("--width", type=int, default=64, show_default=True, help="Padded width of every forward (protocol).")
@click.option(
    "--search-precision", default="float32", show_default=True,
    help="bfloat16: robench-standard and -deep search with it (linf, l2).",
)  # fmt: skip
@click.option("--save-adversarials", is_flag=True, help="Keep every broken image as evidence for `robench verify`.")
@click.option("--trust", is_flag=True, help="Execute code named by --model.")
@click.option(
    "--cell-timeout", type=click.FloatRange(0, min_open=True), help="Seconds that one cell may take [default: no limit]."
)
@click.option("--retry", is_flag=True, help="Try again also what ended its worker process twice.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the graph, counts and a time estimate; store nothing. Models are tried out, and short attacks timed.",
)
@click.option("-v", "--verbose", is_flag=True, help="With --dry-run, list every cell.")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
def run(**options: Any) -> None:
    """Run a suite: attacks, scarcity, compression, corruption, explanations; then print the leaderboard."""
    suite, line, say = _suite(options), *_telling()
    line("loading robench and torch", 0, 1)
    from robench import api
    from robench.reports.write import require_free
    from robench.spec import Settings

    named, out = _models(options), _works_on(options["out"] or api.new_folder(suite))
    require_free(out)
    shared: dict[str, Any] = {
        "models": named,
        "data": options["data"],
        "limit": options["limit"],
        "seed": options["seed"],
        "settings": Settings(width=options["width"], search_precision=options["search_precision"]),
        "trust": options["trust"],
        "classes": options["classes"],
        "class_map": options["class_map"],
    }
    if options["dry_run"]:
        _dry_run(suite, shared, options, line)
        return
    done = api.run(
        suite,
        **shared,
        out=out,
        device=options["device"],
        workers=options["workers"],
        batch_size=options["batch_size"],
        save_adversarials=options["save_adversarials"],
        cell_timeout=options["cell_timeout"],
        retry=options["retry"],
        progress=line,
        announce=say,
    )
    line.clear()
    _print(done.summary.counts, err=True)
    for what, error in done.summary.failures:
        _print(f"failed: {what}: {error.splitlines()[0]}", err=True)
    for reason in dict.fromkeys(reason for _, reason in done.summary.skipped):
        count = sum(reason == other for _, other in done.summary.skipped)
        _print(f"skipped: {count} cells: {reason}", err=True)
    unknown = _report(done.out, options["form"], line)
    if done.summary.failures or unknown:
        _end(FAILED_CELLS)


def _models(options: dict[str, Any]) -> list[Any]:
    from robench.sources import UserModel, split_name

    pixels = _floats(options["input_range"])
    if len(pixels) != 2 or not pixels[0] < pixels[1]:
        raise ConfigError(must("--input-range", "LOW,HIGH with LOW below HIGH", options["input_range"], "e.g. -1,1"))
    mean, std = _floats(options["mean"]), _floats(options["std"])
    named = (split_name(text) for text in options["models"])
    return [
        UserModel(source, options["arch"], mean, std, (pixels[0], pixels[1]), options["num_classes"], name=name)
        for name, source in named
    ]


def _suite(options: dict[str, Any]) -> Any:
    """The suite, edited as the options say."""
    from robench.suite import read_suite

    keys = ("attacks", "threats", "defenses", "chains", "groups", "ood")
    chosen = read_suite(options["suite"]).only(options["scenarios"])
    return chosen.override(**{key: options[key] for key in keys}, shifts=_shifts(options["shifts"]))


def _shifts(texts: tuple[str, ...]) -> dict[str, Any]:
    """Shifted test sets from NAME=DATA."""
    from robench.suite import Shift

    found = {}
    for text in texts:
        name, equals, data = text.partition("=")
        if not equals or not name.strip() or not data.strip() or "(" in name or ":" in name:
            raise ConfigError(must("--shift", "NAME=DATA", text, "e.g. --shift sketches=folder:PATH"))
        found[name.strip()] = Shift(data=data.strip())
    return found


def _dry_run(suite: Any, shared: dict[str, Any], options: dict[str, Any], line: Line) -> None:
    """Print how long a run will take, what it consists of and what it leaves out; with -v every cell."""
    from robench.api import plan_run
    from robench.devices import resolve_device
    from robench.estimate import duration, estimate
    from robench.spec import Context
    from robench.tryout import try_out

    line("reading data and models", 0, 1)
    plan, paths = plan_run(suite, **shared)
    line("trying out the models", 0, 1)
    device, trust = options["device"], options["trust"]
    seen: list[str] = []
    child = try_out(plan, Context("", resolve_device(device), trust=trust, sources=paths, code=plan.code), seen.append)
    if child:
        child.close()
    line("estimating the time", 0, 1)
    seconds, workers = estimate(plan, device=device, workers=options["workers"], sources=paths, trust=trust)
    line.clear()
    for note in plan.data_notes:
        _print(note)
    about = f"about {duration(seconds)} on an idle machine with {workers} worker(s)"
    _print(f"{len(plan.cells)} cells, {about}; nothing was computed")
    for what, count in plan.counts().items():
        _print(f"{count:5d}  {what}")
    _print("cells per model:")
    for label, count in Counter(cell.model.label for cell in plan.cells).items():
        _print(f"{count:5d}  {label}")
    for text in [*seen, *(f"left out: {note}" for note in plan.notes)]:
        _print(text)
    if not options["verbose"]:
        _print("with -v every cell is listed")
        return
    for cell in plan.cells:
        _print(f"  {cell.digest[:8]}  {cell.model.label:18s} {cell.condition:26s} {cell.scenario}")


def _report(folder: Path, form: str, line: Line) -> int:
    """Write the reports of a run, print its leaderboard, and return how many samples are unknown."""
    line("scoring the results", 0, 1)
    from robench.reports.leaderboard import leaderboard, main_threats, ranked_by
    from robench.reports.text import label_doubts
    from robench.reports.write import write_reports
    from robench.store import Store

    table, header = _table(folder), Store(folder).read_run()
    write_reports(table, folder, {k: v for k, v in header.items() if k != "cells"}, progress=line)
    line.clear()
    for doubt in label_doubts(table):
        _print(f"{WARNING}{doubt}", err=True)
    threats = main_threats(header)
    _echo(leaderboard(table, threats=threats), form, ranked_by(table, threats=threats))
    _print(f"report: {folder / 'report.html'}", err=True)
    return int(table["n_unknown"].fillna(0).sum()) if len(table) else 0


def _echo(board: Any, form: str, ranked: tuple[str, str]) -> None:
    """Print a leaderboard on stdout: drawn and coloured for the eye, or as csv, json, md."""
    from robench.reports.leaderboard import ranking_column
    from robench.reports.text import render, show

    if form != "table":
        _print(render(board, format=form), nl=False, whole=True)
        return
    from rich.console import Console

    show(board, console=Console(width=screen_width(sys.stdout) or ORDINARY), ranked=ranking_column(ranked))


@main.command()
@click.argument("run_directory", type=click.Path(path_type=Path))
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
def report(run_directory: Path, form: str) -> None:
    """Score stored rows again and write tables, pictures and the page; no model is run."""
    _report(_works_on(run_directory), form, _line())


@main.command()
@click.argument("run_directories", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
@click.option("--by", help="Metric that ranks [default: robust accuracy; without attacks corrupted, then clean accuracy].")
@click.option("--threat", help="Threat that ranks, e.g. 'linf(8/255)' [default: the most measured].")
def leaderboard(run_directories: tuple[Path, ...], form: str, by: str | None, threat: str | None) -> None:
    """Rank the models of one or more runs; suspicious numbers are shown and not ranked."""
    from robench.reports.leaderboard import joined, main_threats, named_apart, ranked_by
    from robench.reports.leaderboard import leaderboard as rank
    from robench.store import Store

    folders = list(dict.fromkeys(run_directories))
    stores = {name: Store(folder) for name, folder in zip(_run_names(folders), folders, strict=True)}
    threats = main_threats(*(store.read_run() for store in stores.values()))
    tables = named_apart(
        {name: _table(store.root) for name, store in stores.items()},
        {name: store.models() for name, store in stores.items()},
    )
    told: dict[str, Any] = {"by": by, "threat": threat, "threats": [*threats, *([threat] if threat else [])]}
    _echo(rank(tables, **told), form, ranked_by(joined(tables), **told))


def _run_names(folders: list[Path]) -> list[str]:
    """The folders' own names, or their paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _table(folder: Path) -> Any:
    from robench.api import load
    from robench.metrics.table import tidy
    from robench.store import Store

    return tidy(load(folder), limited=bool(Store(folder).read_run()["limited"]))


@main.command()
@click.argument("run_directory", type=click.Path(path_type=Path))
@click.option("--require", "requirements", multiple=True, required=True, help="'robust_accuracy[linf(8/255)]>=0.4'")
@click.option("--model", "models", multiple=True, help="Only these models.")
@click.option("--format", "form", type=FORMATS, default="table", show_default=True, help="How the findings are printed.")
def audit(run_directory: Path, requirements: tuple[str, ...], models: tuple[str, ...], form: str) -> None:
    """Pass or fail a release: each bound is compared with the interval's worse end; suspicious or unknown fails.

    Exit 3: nothing failed, and results are pending, or a randomised model or too few samples left a bound undecided.
    """
    from robench.errors import suggestion
    from robench.judged import judged_models
    from robench.reports.audit import audit as check
    from robench.reports.audit import parse_requirement, require_measured
    from robench.reports.leaderboard import main_threats
    from robench.reports.terminal import finding_lines
    from robench.reports.text import label_doubts, render
    from robench.store import Store

    parsed = [parse_requirement(text) for text in requirements]
    store = Store(_works_on(run_directory))
    header = store.read_run()
    cells = header["cells"].values()
    known = {cell["model"] for cell in cells if not cell["condition"]}
    for name in models:
        if name not in known:
            raise ConfigError(must("--model", f"a model of {run_directory}", name, suggestion(name, known)))
    wanted, table = set(models) or known, _table(run_directory)
    require_measured(table, parsed, planned={str(cell["threat"]) for cell in cells if cell.get("threat")})
    table = table[table["model"].isin(wanted)]
    result = check(table, parsed, threats=main_threats(header))
    missing = sorted(wanted - set(table["model"]))
    for doubt in label_doubts(table):
        _print(f"{WARNING}{doubt}", err=True)
    for text in finding_lines(result.findings) if form == "table" else ():
        _print(text, indent=4)
    if form != "table":
        _print(render(result.frame(), format=form), nl=False, whole=True)
    aside = form in ("csv", "json")  # their readers take nothing but the findings
    for text in judged_models(store, wanted):
        _print(f"judged: {text}", err=aside)
    for name in missing:  # planned, and nothing was tried yet: what failed has rows
        _print(f"{name}: pending: no result yet; run the same command again", err=aside)
    failed = any(not (f.passed or f.undecided) for f in result.findings)
    _print("failed" if failed else "undecided" if missing else result.outcome, err=aside)
    _end(1 if failed else 3 if missing else result.exit_code)


@main.command()
@click.argument("run_directory", type=click.Path(path_type=Path))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N; may be another than the run's.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Samples held at once.")
@click.option("--model", "models", multiple=True, help="Where a model file of the run is now, if it moved.")
@click.option("--trust", is_flag=True, help="Execute code named by the run's models.")
@click.option("--rerun", is_flag=True, help="Run attacks again too, and compare what they say of their search.")
def verify(run_directory: Path, models: tuple[str, ...], **options: Any) -> None:
    """Look at a run again: plan, headers, rows, kept images, tables; exit 1 and a list where anything differs."""
    line = _line()
    line("loading robench and torch", 0, 1)
    from robench.verification import verify_run

    line.clear()
    found = verify_run(_works_on(run_directory), models=models, verbose=True, **options)
    line("comparing the tables with the rows", 0, 1)
    lines = [*found.differences, *_unlike_tables(run_directory)]
    line.clear()
    for text in lines:
        _print(text)
    for note in found.notes:
        _print(f"not checked: {note}", err=True)
    images = f"{found.images} float32 and {found.images_8bit} 8-bit adversarial images judged again"
    told = f"{found.cells} of {found.planned} cells checked, {images}"
    _print(f"{told}: {len(lines)} differences" if lines else f"{told}: no difference")
    _end(1 if lines else 0)


def _unlike_tables(folder: Path) -> list[str]:
    """What the written tables of a run say otherwise than its rows do."""
    from robench.errors import StoreError
    from robench.reports.checked import unlike_tables
    from robench.store import Store

    try:
        return unlike_tables(_table(folder), folder, Store(folder).read_run())
    except StoreError as error:
        return [f"tables: not compared with the rows: {error}"]


@main.command(name="list")
@click.argument("kind", required=False)
@click.option("--format", "form", type=FORMATS, default="table", show_default=True)
def list_(kind: str | None, form: str) -> None:
    """List attacks, data, architectures, recipes, ..., models (or zoo) or suites."""
    from robench.catalog import TABLES
    from robench.errors import suggestion

    if kind is None:
        for name in sorted([*TABLES, *_NAMED]):
            _print(name)
        return
    if kind not in TABLES and kind not in (*_NAMED, "zoo"):
        raise ConfigError(must("a kind", "a known one", kind, suggestion(kind, [*TABLES, *_NAMED, "zoo"])))
    rows = _listed(kind)
    if form != "table":
        import pandas as pd

        from robench.reports.text import render

        _print(render(pd.DataFrame(rows, columns=["name", "summary"]), format=form), nl=False, whole=True)
        return
    for name, summary in rows:
        _print(f"{name:24s} {summary}", indent=25)


_NAMED = ("models", "suites")
"""What is listed besides the tables of plug-ins."""
_PREFIXED = {"data": "PATH", "attacks": "NAME"}
"""Kind -> what follows the prefix of a family (``folder:PATH``)."""


def _listed(kind: str) -> list[tuple[str, str]]:
    """Names of a kind with a line on each, sorted."""
    from robench.catalog import TABLES

    if kind in ("models", "zoo"):
        from robench.zoo.entries import ZOO

        return [(name, entry.summary) for name, entry in ZOO.items()]
    if kind == "suites":
        from robench.suite import summaries

        return list(summaries().items())
    table = TABLES[kind]
    derived: dict[str, Any] = {}
    if kind == "metrics":
        from robench.metrics.known import DERIVED

        derived = {name: about["summary"] for name, about in DERIVED.items()}
    families = [(f"{p}:{_PREFIXED[kind]}", table.described(p).facts["summary"]) for p in table.prefixes]
    return sorted([*((name, _summary(entry)) for name, entry in table.items()), *families, *derived.items()])


def _summary(entry: Any) -> str:
    return f"broken: {entry.broken}" if entry.broken else str(entry.facts["summary"])


@main.command()
@click.argument("kind")
@click.argument("name")
def show(kind: str, name: str) -> None:
    """Show one entry: what it does, its parameters and defaults; a model's training; a suite's YAML."""
    from robench.catalog import TABLES
    from robench.errors import suggestion
    from robench.suite import PACKAGED, packaged, read_suite

    if kind in ("suite", "suites"):
        read_suite(name)
        _print(packaged(name) if name in PACKAGED else Path(name).read_text(encoding="utf-8"), whole=True)
        return
    if kind in ("model", "models", "zoo"):
        _show_model(name)
        return
    table = TABLES.get(kind) or TABLES.get(f"{kind}s")
    if table is None:
        raise ConfigError(must("a kind", "a known one", kind, suggestion(kind, [*TABLES, *_NAMED])))
    if table.kind == "metrics" and name not in table:
        from robench.metrics.known import facts_of

        for key, value in {"": name, **facts_of(name)}.items():
            click.echo(f"  {key}: {value}" if key else value)
        return
    entry = table.described(name)
    usage = f"{name}:{_PREFIXED[table.kind]}" if name in table.prefixes else name
    _print(f"{usage}: {entry.description or entry.facts['summary']}")
    _print(f"  from {entry.origin}, {entry.target}")
    for key, value in entry.facts.items():
        if key != "summary":
            _print(f"  {key}: {value}")
    for key, default in entry.parameters.items():
        _print(f"  {key} = {default!r}")


def _show_model(name: str) -> None:
    """How a zoo net was trained, and what was measured then.

    Raises:
        ConfigError: Unknown name.
    """
    from robench.errors import suggestion
    from robench.zoo.entries import ZOO

    if name not in ZOO:
        raise ConfigError(must("a model", "a known one", name, suggestion(name, ZOO)))
    entry = ZOO[name]
    channels, height, width = entry.spec.shape
    _print(f"{name}: {entry.summary}")
    told = {
        "architecture": entry.arch, "recipe": entry.recipe, "steps": entry.steps, "seed": entry.seed, "data": entry.data,
        "input": f"{channels} x {height} x {width}, pixels in [0, 1]", "classes": entry.spec.num_classes,
        "training accuracy": f"{entry.train_accuracy:.1%}", "weights sha256": entry.sha256, "licence": entry.spec.licence,
    }  # fmt: skip
    for key, value in told.items():
        _print(f"  {key}: {value}")


@main.command()
def doctor() -> None:
    """Print versions, devices, precision flags and free disk, and say what is missing and how to get it."""
    from robench.doctor import findings

    problems = 0
    for name, state, good in findings():
        _print(f"{'ok ' if good else '!! '} {name:18s} {state}")
        problems += not good
    _end(1 if problems else 0)


@main.group()
def zoo() -> None:
    """The embedded zoo."""


@zoo.command()
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), default=Path("zoo-weights"), show_default=True)
@click.option("--data", default="", help="Where its images are, e.g. cifar10(root='data'); digits need none.")
def build(name: str, out: Path, data: str) -> None:
    """Train a model of the zoo again from its recorded recipe and seed."""
    from robench.zoo.building import build as rebuild

    _print(str(rebuild(name, out, data=data, progress=_training())))


def _training() -> Any:
    def show(done: int, total: int, loss: float) -> None:
        if done % 100 == 0 or done == total:
            _print(f"step {done}/{total}, loss {loss:.4f}", err=True)

    return show
