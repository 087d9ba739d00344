"""The command line: parses, calls, prints; no logic.

Each command imports what it needs when it runs, so that `list`, `plan`, `status`, `collect` and `report` answer at once
and never import torch.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .results import plugins

if TYPE_CHECKING:
    import pandas as pd

    from .jobs.plan import Plan
    from .jobs.sweep import Sweep
    from .results.store import Store

    # what add_subparsers returns has no public name
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

Call = Callable[[argparse.Namespace], int]
Parser = argparse.ArgumentParser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script: 0 all is well, 1 a cell or comparison is not, 2 bad input, 130 stopped."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.call(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _complain("stopped; what was finished is kept, the same command goes on from there", 130)
    except BrokenPipeError:  # `lacuna plan ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        return _complain(f"{error}; `lacuna doctor` says what this machine lacks", 2)
    except (ValueError, OSError) as error:
        return _complain(str(error), 2)
    return code


def _complain(sentence: str, code: int) -> int:
    if sentence:
        print(sentence, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lacuna", description="Measure what sparse attention loses and gains.")
    parser.add_argument("--version", action="version", version=f"lacuna {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_sweep_commands(commands)
    _add_result_commands(commands)
    _add_kernel_commands(commands)
    listing = _command(commands, "list", _list, "models, methods, tasks, ops, figures or sites that there are")
    listing.add_argument("kind", choices=tuple(plugins.FOLDERS))
    listing.add_argument("--json", action="store_true", help="with the arguments, their types and defaults")
    _command(commands, "doctor", _doctor, "what this machine can and cannot do, with the mend", _store())
    return parser


def _command(commands: Commands, name: str, call: Call, text: str, *parents: Parser) -> Parser:
    parser = commands.add_parser(name, help=text, description=text, parents=parents)
    parser.set_defaults(call=call)
    return parser


def _store() -> Parser:
    default = Path(os.environ.get("LACUNA_STORE") or "store")
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--store", type=Path, default=default, help="the records (default: $LACUNA_STORE or ./store)")
    return parser


def _settings() -> Parser:
    parser = argparse.ArgumentParser(add_help=False, parents=[_store()])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="K=V", help="e.g. ranks=1")
    return parser


def _sweep() -> Parser:
    parser = argparse.ArgumentParser(add_help=False, parents=[_settings()])
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep file (YAML)")
    return parser


def _work() -> Parser:
    parser = argparse.ArgumentParser(add_help=False, parents=[_sweep()])
    parser.add_argument("--retry", default="preempted", metavar="STATUS,...", help="run again what ended so")
    return parser


def _add_sweep_commands(commands: Commands) -> None:
    plan = _command(commands, "plan", _plan, "cells of a sweep, in waves and groups, and what is done", _work())
    plan.add_argument("--json", action="store_true")
    run = _command(commands, "run", _run, "run what is missing; `mpirun -np N lacuna run SWEEP` for N ranks", _work())
    run.add_argument("--cell-timeout", type=_seconds, metavar="S", help="a cell that takes longer is a time-out")
    submit = _command(commands, "submit", _submit, "hand what is missing to a site's Slurm", _work())
    submit.add_argument("--site", required=True, metavar="NAME", help="one of `lacuna list sites`")
    submit.add_argument("--dry-run", action="store_true", help="print the sbatch text")
    _command(commands, "status", _status, "how many cells are done, and what is missing", _sweep())
    why = _command(commands, "why", _why, "reason, trace and log of what failed", _sweep())
    why.add_argument("key", nargs="?", default="", metavar="KEY", help="a cell's key, or its beginning")


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def _add_result_commands(commands: Commands) -> None:
    collect = _command(commands, "collect", _collect, "fold a sweep's records into one file", _sweep())
    collect.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE", help=".parquet or .csv")
    report = _command(commands, "report", _report, "table, figures and an HTML page", _settings())
    report.add_argument("source", type=Path, metavar="SWEEP|FILE", help="a sweep, or what `collect` wrote")
    report.add_argument("-o", dest="output", type=Path, default=Path("report"), metavar="DIR")
    diff = _command(commands, "diff", _diff, "compare two sweeps or files; exit code 1 if B is worse", _settings())
    diff.add_argument("before", type=Path, metavar="A", help="a sweep, or what `collect` wrote")
    diff.add_argument("after", type=Path, metavar="B")


def _add_kernel_commands(commands: Commands) -> None:
    verify = _command(commands, "verify", _verify, "hold kernels against their eager twins")
    bench = _command(commands, "bench", _bench, "verify, then time kernels")
    bench.add_argument("-o", dest="output", type=Path, metavar="CSV", help="write the rows there too")
    for parser in (verify, bench):
        parser.add_argument("op", nargs="?", help="one of `lacuna list ops` (default: all)")
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")


def _list(args: argparse.Namespace) -> int:
    from .jobs import show

    rows = show.catalogue(args.kind)
    print(show.pretty(rows) if args.json else show.listing(rows))
    return 0


def _read(args: argparse.Namespace, path: Path) -> tuple[Sweep, Store]:
    from .jobs.sweep import read
    from .results.store import Store

    store = Store(args.store)
    return read(path, store, args.settings), store


def _planned(args: argparse.Namespace) -> tuple[Sweep, Store, Plan]:
    from .jobs.plan import plan

    sweep, store = _read(args, args.sweep)
    return sweep, store, plan(sweep, store, args.retry.split(",") if "retry" in args else ())


def _plan(args: argparse.Namespace) -> int:
    from .jobs.show import pretty

    _, _, plan = _planned(args)
    print(pretty(plan.to_json()) if args.json else plan.explain())
    return 0


def _run(args: argparse.Namespace) -> int:
    from .harness.ranks import find_ranks
    from .jobs.here import run_here
    from .jobs.show import hush, say, wrong_ranks

    ranks = find_ranks()
    tell = say if ranks.rank == 0 else hush  # every rank runs, the first one speaks
    try:
        sweep, store, plan = _planned(args)
    except ValueError as error:
        return _complain(str(error) if ranks.rank == 0 else "", 2)
    for line in (plan.explain(), *wrong_ranks(plan.todo, ranks.size, str(args.sweep))):
        tell(line)
    run_here(plan, store, ranks, tell, args.cell_timeout)
    return _finish(args, sweep, store) if ranks.rank == 0 else 0


def _finish(args: argparse.Namespace, sweep: Sweep, store: Store) -> int:
    from .analysis.table import terminal_table
    from .jobs.plan import plan
    from .results.frame import to_frame

    ended = plan(sweep, store, ())
    print(terminal_table(to_frame(store.records(cell.key for cell in sweep.cells))))
    if set(ended.counts()) <= {"ok"}:
        return 0
    return _complain(f"not every cell is ok ({ended.tally()}); `lacuna why {args.sweep}` says why", 1)


def _submit(args: argparse.Namespace) -> int:
    from .jobs.submit import dry_run, submit

    sweep, store, plan = _planned(args)
    task = (plan, sweep.name, store, args.site)
    print(dry_run(*task) if args.dry_run else "\n".join(submit(*task)))
    return 0


def _status(args: argparse.Namespace) -> int:
    from .jobs import show

    _, _, plan = _planned(args)
    print(show.status(plan))
    return 0


def _why(args: argparse.Namespace) -> int:
    from .jobs import show

    _, store, plan = _planned(args)
    told = list(show.failures(plan, store, args.key))
    print("\n\n".join(told) if told else f"nothing failed; {len(plan.todo)} cells have not run yet")
    return 0


def _frame(args: argparse.Namespace, source: Path) -> tuple[pd.DataFrame, str]:
    """The records of a sweep or of a collected file, and their title."""
    from .results.frame import read, to_frame

    if source.suffix in (".parquet", ".csv"):
        return read(source), source.stem
    sweep, store = _read(args, source)
    records = list(store.records(cell.key for cell in sweep.cells))
    if not records:
        raise ValueError(f"no cell of {source} has a record in {store.root}; `lacuna run` it, or see --store")
    return to_frame(records), sweep.name


def _collect(args: argparse.Namespace) -> int:
    from .results.frame import write

    frame, _ = _frame(args, args.sweep)
    write(frame, args.output)
    print(f"{args.output}: {len(frame)} rows")
    return 0


def _report(args: argparse.Namespace) -> int:
    from .analysis.report import write_report
    from .analysis.table import terminal_table

    frame, title = _frame(args, args.source)
    command = shlex.join(["lacuna", "report", str(args.source), "-o", str(args.output)])
    paths = write_report(frame, args.output, title, command)
    print(terminal_table(frame))
    print("\n".join(map(str, paths)))
    return 0


def _diff(args: argparse.Namespace) -> int:
    from .analysis.diff import compare

    found = compare(_frame(args, args.before)[0], _frame(args, args.after)[0])
    print(found.text)
    return int(found.worse)


def _ops(args: argparse.Namespace) -> list[str]:
    if args.op:
        plugins.source("ops", args.op)
    return [args.op] if args.op else plugins.names("ops")


def _verify(args: argparse.Namespace) -> int:
    names = _ops(args)
    from .jobs.show import say_row
    from .kernels.verify import verify_all

    verdicts = [say_row(verdict) for verdict in verify_all(names, args.device)]
    return int(not all(verdict["passed"] for verdict in verdicts))


def _bench(args: argparse.Namespace) -> int:
    names = _ops(args)
    from .jobs.show import say_row
    from .kernels.bench import rows, write_csv

    timed = [say_row(row) for row in rows(names, args.device)]
    if args.output:
        write_csv(timed, args.output)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .jobs.doctor import examine
    from .jobs.show import say

    for finding in examine(args.store):
        say(str(finding))
    return 0
