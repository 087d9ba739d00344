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

if TYPE_CHECKING:
    import pandas as pd

    from .jobs.plan import Plan
    from .jobs.sweep import Sweep
    from .results.store import Store

KINDS = ("models", "methods", "tasks", "ops", "figures", "sites")


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
    print(f"lacuna: {sentence}" if "\n" not in sentence else sentence, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lacuna", description="What a language model loses and gains by sparse attention."
    )
    parser.add_argument("--version", action="version", version=f"lacuna {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_list(commands.add_parser("list", help="models, methods, tasks, ops, figures or sites that there are"))
    _add_plan(commands.add_parser("plan", help="cells of a sweep, in waves and groups, and what is done"))
    _add_run(commands.add_parser("run", help="run here what is missing; `mpirun -np N lacuna run SWEEP` for N ranks"))
    _add_submit(commands.add_parser("submit", help="hand what is missing to a site's Slurm"))
    _sweep(commands.add_parser("status", help="how many cells are done, and what is missing"), _status)
    _add_why(commands.add_parser("why", help="reason, trace and log of what failed"))
    _add_collect(commands.add_parser("collect", help="fold a sweep's records into one file"))
    _add_report(commands.add_parser("report", help="table, figures and an HTML page"))
    _add_diff(commands.add_parser("diff", help="compare two sweeps or collected files; exit code 1 if B is worse"))
    _add_ops(commands.add_parser("verify", help="hold kernels against their eager twins"), _verify)
    bench = commands.add_parser("bench", help="verify, then time kernels")
    bench.add_argument("-o", dest="output", type=Path, metavar="CSV", help="write the rows there too")
    _add_ops(bench, _bench)
    _store(commands.add_parser("doctor", help="what this machine can and cannot do, with the mend"), _doctor)
    return parser


def _store(parser: argparse.ArgumentParser, call: Callable[[argparse.Namespace], int]) -> None:
    default = Path(os.environ.get("LACUNA_STORE") or "store")
    parser.add_argument(
        "--store", type=Path, default=default, help="folder of records (default: $LACUNA_STORE or ./store)"
    )
    parser.set_defaults(call=call)


def _sweep(parser: argparse.ArgumentParser, call: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep file (YAML)")
    _settings(parser, call)


def _settings(parser: argparse.ArgumentParser, call: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="K=V", help="e.g. ranks=1")
    _store(parser, call)


def _retry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry", default="preempted", metavar="STATUS,...", help="also run again what ended so")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--json", action="store_true", help="with the arguments, their types and defaults")
    parser.set_defaults(call=_list)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")
    _retry(parser)
    _sweep(parser, _plan)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cell-timeout", type=_seconds, metavar="S", help="a cell that takes longer is a time-out")
    _retry(parser)
    _sweep(parser, _run)


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return float(text)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", required=True, metavar="NAME", help="one of `lacuna list sites`")
    parser.add_argument("--dry-run", action="store_true", help="print the sbatch text")
    _retry(parser)
    _sweep(parser, _submit)


def _add_why(parser: argparse.ArgumentParser) -> None:
    _sweep(parser, _why)
    parser.add_argument("key", nargs="?", default="", metavar="KEY", help="a cell's key, or its beginning")


def _add_collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FILE", help=".parquet or .csv")
    _sweep(parser, _collect)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SWEEP|FILE", help="a sweep, or what `collect` wrote")
    parser.add_argument("-o", dest="output", type=Path, default=Path("report"), metavar="DIR")
    _settings(parser, _report)


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", type=Path, metavar="A", help="a sweep, or what `collect` wrote")
    parser.add_argument("after", type=Path, metavar="B")
    _settings(parser, _diff)


def _add_ops(parser: argparse.ArgumentParser, call: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("op", nargs="?", help="one of `lacuna list ops` (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.set_defaults(call=call)


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
    from .jobs.show import say, wrong_ranks

    sweep, store, plan = _planned(args)
    ranks = find_ranks()
    tell = say if ranks.rank == 0 else str  # every rank runs, the first one speaks
    foreign = wrong_ranks(plan.todo, ranks.size, str(args.sweep))
    for line in (plan.explain(), *foreign):
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
    counts = ", ".join(f"{n} {state}" for state, n in ended.counts().items())
    return _complain(f"not every cell is ok ({counts}); `lacuna why {args.sweep}` says why", 1)


def _submit(args: argparse.Namespace) -> int:
    from .jobs.submit import dry_run, submit

    sweep, store, plan = _planned(args)
    if args.dry_run:
        print(dry_run(plan, sweep.name, store, args.site))
        return 0
    for line in submit(plan, sweep.name, store, args.site):
        print(line)
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
        raise ValueError(
            f"no cell of {source} has a record in {store.root}; `lacuna run {source}` first, or see --store"
        )
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
    from .results import plugins

    if args.op:
        plugins.source("ops", args.op)
    return [args.op] if args.op else plugins.names("ops")


def _verify(args: argparse.Namespace) -> int:
    names = _ops(args)
    from .jobs import show
    from .kernels.verify import verify_all

    passed = True
    for verdict in verify_all(names, args.device):
        print(show.row(verdict), flush=True)
        passed = passed and bool(verdict.get("passed", True))
    return 0 if passed else 1


def _bench(args: argparse.Namespace) -> int:
    names = _ops(args)
    from .jobs import show
    from .kernels.bench import rows, write_csv

    timed = []
    for row in rows(names, args.device):
        print(show.row(row), flush=True)
        timed.append(row)
    if args.output:
        write_csv(timed, args.output)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .jobs.doctor import examine

    for finding in examine(args.store):
        print(finding, flush=True)
    return 0
