"""What can be typed: the commands and their options."""

from __future__ import annotations

import contextlib
import os
import shlex
from argparse import ArgumentParser as Parser
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..results import plugins

if TYPE_CHECKING:
    from argparse import _SubParsersAction  # what add_subparsers returns has no public name

    Commands = _SubParsersAction[Parser]


def parser(version: str) -> Parser:
    """The parser of `lacuna`; the command's name is its `command`."""
    root = Parser(prog="lacuna", description="Measure what sparse attention loses and gains.")
    root.add_argument("--version", action="version", version=f"lacuna {version}")
    commands = root.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_sweep_commands(commands)
    _add_result_commands(commands)
    _add_kernel_commands(commands)
    _add_weights_commands(commands)
    listing = _command(commands, "list", "models, methods, tasks, ops, figures, papers or sites that there are")
    listing.add_argument("kind", choices=tuple(plugins.FOLDERS))
    listing.add_argument("--json", action="store_true", help="with the arguments, their types and defaults")
    _command(commands, "doctor", "what this machine can and cannot do, with the mend", _store())
    return root


def _command(commands: Commands, name: str, text: str, *parents: Parser) -> Parser:
    return commands.add_parser(name, help=text, description=text, parents=parents)


def typed(args: Namespace) -> str:
    """The sweep with its settings and store, as the next command that is about the same cells must name them."""
    chosen = [part for setting in args.settings for part in ("--set", setting)]
    store = [] if args.store == _default_store() else ["--store", str(args.store)]
    data = [] if args.data == _default_data() else ["--data", str(args.data)]
    return shlex.join([str(args.sweep), *chosen, *store, *data])


def is_table(source: Path) -> bool:
    """Whether a source is a file of records or times; else it is a sweep."""
    return source.suffix in (".parquet", ".csv")


def check_settings(args: Namespace, sources: Sequence[Path]) -> None:
    """Raise ValueError where `--set` would change nothing, as there is no sweep among the sources."""
    if args.settings and all(map(is_table, sources)):
        raise ValueError(f"--set {args.settings[0]} sets nothing: {sources[0]} holds what was measured; see --where")


def _default_store() -> Path:
    return Path(os.environ.get("LACUNA_STORE") or "store")


def _default_data() -> Path | None:
    home = os.environ.get("LACUNA_DATA")
    return Path(home) if home else None


def _store() -> Parser:
    parser, default = Parser(add_help=False), _default_store()
    parser.add_argument("--store", type=Path, default=default, help="the records (default: $LACUNA_STORE or ./store)")
    return parser


def _settings() -> Parser:
    parser = Parser(add_help=False, parents=[_store()])
    text = "in place of what the file says: ranks=1, task.NAME.ARGUMENT=4"
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="K=V", help=text)
    text = "data files that lie neither in the package nor beside the sweep (default: $LACUNA_DATA)"
    parser.add_argument("--data", type=Path, default=_default_data(), metavar="DIR", help=text)
    return parser


def _sweep() -> Parser:
    parser = Parser(add_help=False, parents=[_settings()])
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep file (YAML)")
    return parser


def _work() -> Parser:
    parser = Parser(add_help=False, parents=[_sweep()])
    parser.add_argument("--retry", default="preempted", metavar="STATUS,...", help="run again what ended so")
    return parser


def _add_sweep_commands(commands: Commands) -> None:
    plan = _command(commands, "plan", "cells of a sweep, in waves and groups, and what is done", _work())
    plan.add_argument("--json", action="store_true")
    run = _command(commands, "run", "run what is missing; `mpirun -np N lacuna run SWEEP` for N ranks", _work())
    run.add_argument("--cell-timeout", type=seconds, metavar="S", help="a cell that takes longer is a time-out")
    submit = _command(commands, "submit", "hand what is missing to a site's Slurm", _work())
    submit.add_argument("--site", required=True, metavar="NAME", help="one of `lacuna list sites`")
    submit.add_argument("--dry-run", action="store_true", help="print the sbatch text")
    _command(commands, "status", "how many cells are done, and what is missing", _sweep())
    why = _command(commands, "why", "reason, trace and log of what failed", _sweep())
    why.add_argument("key", nargs="?", default="", metavar="KEY", help="a cell's key, or its beginning")


def seconds(text: str) -> float:
    """A time-out.

    Raises:
        ArgumentTypeError: it is no number above 0.
    """
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")


def count(text: str) -> int:
    """A number of things.

    Raises:
        ArgumentTypeError: it is no whole number above 0.
    """
    with contextlib.suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise ArgumentTypeError(f"expected a whole number above 0, got {text!r}")


def csv_file(text: str) -> Path:
    """Where times are written.

    Raises:
        ArgumentTypeError: `report` could not read it there.
    """
    if not text.endswith(".csv"):
        raise ArgumentTypeError(f"times are written as .csv, not {text!r}")
    return Path(text)


def _add_result_commands(commands: Commands) -> None:
    collect = _command(commands, "collect", "fold a sweep's records into one file", _sweep())
    collect.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE", help=".parquet or .csv")
    report = _command(commands, "report", "table, figures and an HTML page", _settings())
    report.add_argument("-o", dest="output", type=Path, default=Path("report"), metavar="DIR")
    papers = [name.replace("_", "-") for name in plugins.names("papers")]
    report.add_argument("--paper", choices=papers, default="", help="tables and figures as that source has them")
    table = _command(commands, "table", "the table in the terminal, of the cells you choose", _settings())
    table.add_argument(
        "--by", choices=("method", "model", "setting", "task"), default="method", help="a table for each"
    )
    for shown in (report, table):
        text = "sweeps, and what `collect` or `bench -o` wrote; several are shown as one"
        shown.add_argument("source", type=Path, nargs="+", metavar="SWEEP|FILE", help=text)
        shown.add_argument(
            "--where", action="append", default=[], metavar="K=V", help="e.g. task=needle, method.keep=0.25"
        )
    diff = _command(commands, "diff", "compare two sweeps or files; exit code 1 if B is worse", _settings())
    diff.add_argument("before", type=Path, metavar="A", help="a sweep, or what `collect` wrote")
    diff.add_argument("after", type=Path, metavar="B")


def _add_weights_commands(commands: Commands) -> None:
    weights = _command(commands, "weights", "trained weights as folders, and what one has beyond another")
    kinds = weights.add_subparsers(metavar="WHAT", dest="what", required=True)
    export = _command(kinds, "export", "a trained model as a folder of transformers, with its card", _store())
    export.add_argument("key", metavar="KEY", help="the key of its training cell")
    diff = _command(kinds, "diff", "write what a tuned folder has beyond its base")
    recover = _command(kinds, "recover", "the tuned folder again, from its base and the difference")
    for parser in (diff, recover):
        parser.add_argument("base", type=Path, metavar="BASE", help="a folder with *.safetensors")
    diff.add_argument("tuned", type=Path, metavar="TUNED", help="another")
    diff.add_argument("output", type=Path, metavar="FILE", help="a new .safetensors")
    recover.add_argument("difference", type=Path, metavar="FILE", help="what `diff` wrote")
    for parser in (export, recover):
        parser.add_argument("output", type=Path, metavar="FOLDER", help="a new or empty folder")


def _add_kernel_commands(commands: Commands) -> None:
    verify = _command(commands, "verify", "hold kernels against their eager twins")
    bench = _command(commands, "bench", "verify, then time kernels", _store())
    bench.add_argument("-o", dest="output", type=csv_file, metavar="CSV", help="write each row there as it is measured")
    bench.add_argument("--rows", type=count, nargs="+", metavar="S", help="time caches of so many rows instead")
    bench.add_argument("--batch", type=count, nargs="+", metavar="B", help="with --rows: sequences (default: 16)")
    bench.add_argument(
        "--part", type=count, nargs="+", metavar="P", help="with --rows: 1/P of rows and dims (default: 4)"
    )
    bench.add_argument("--gpu", default="", metavar="NAME", help="refuse a GPU of another name, such as H200")
    bench.add_argument("--heads", metavar="HxG", help="with --rows: query x key/value heads (default: 32x8)")
    bench.add_argument("--head-dim", type=count, metavar="D", help="with --rows: dims of a head (default: 128)")
    bench.add_argument(
        "--keys", nargs="+", default=["random"], metavar="MODEL",
        help="whose keys: random, or a model of `lacuna list models` over real text (default: random)",
    )  # fmt: skip
    for parser in (verify, bench):
        parser.add_argument("op", nargs="*", metavar="OP", help="some of `lacuna list ops` (default: all)")
        parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
