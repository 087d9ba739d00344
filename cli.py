"""The command line: parses, calls, prints; no logic.

Each command imports what it needs when it runs, so that `list`, `plan`, `status`, `collect` and `report` answer at once
and never import torch.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .jobs.commands import check_settings, is_table, parser, typed
from .jobs.say import UnheardError, flush, hush, say
from .results.worded import worded

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

if TYPE_CHECKING:
    import pandas as pd

    from .analysis.sources import Sources
    from .jobs.plan import Plan
    from .jobs.sweep import Sweep
    from .results.store import Store


def main(argv: Sequence[str] | None = None) -> int:
    """Answer a command line; `__main__.main` is the entry point, which ends with 130 when it is stopped.

    Returns:
        0 all is well, 1 a cell or comparison is not, 2 bad input, 141 nobody reads the output any more.
    """
    try:
        return _answer(argv)
    except UnheardError as error:
        return _complain(str(error), error.code)


def _answer(argv: Sequence[str] | None) -> int:
    try:
        args = parser(__version__).parse_args(argv)
        return COMMANDS[args.command](args)
    except ModuleNotFoundError as error:
        return _complain(f"{error}; `lacuna doctor` says what this machine lacks", 2)
    except ValueError as error:
        return _complain(worded(error), 2)
    except OSError as error:  # neither a full disk nor a lost rank is somebody's wrong input
        return _complain(worded(error), 1 if error.errno in FULL or isinstance(error, ConnectionError) else 2)
    finally:
        flush()  # of argparse's help nobody else would know that it was not read


def _complain(sentence: str, code: int) -> int:
    if sentence:
        print(sentence, file=sys.stderr)
    return code


def _list(args: argparse.Namespace) -> int:
    from .jobs import show

    rows = show.catalogue(args.kind)
    say(show.pretty(rows) if args.json else show.listing(rows))
    return 0


def _read(args: argparse.Namespace, path: Path) -> tuple[Sweep, Store]:
    from .jobs.sweep import read
    from .results.store import Store

    if args.data is not None and not args.data.is_dir():
        raise ValueError(f"--data {args.data}: there is no such folder")
    store = Store(args.store)
    return read(path, store, args.settings, args.data), store


def _planned(args: argparse.Namespace) -> tuple[Sweep, Store, Plan]:
    from .jobs.plan import plan

    sweep, store = _read(args, args.sweep)
    return sweep, store, plan(sweep, store, args.retry.split(",") if "retry" in args else ())


def _plan(args: argparse.Namespace) -> int:
    from .jobs.show import compact

    _, _, plan = _planned(args)
    say(compact(plan.to_json()) if args.json else plan.explain())
    return 0


def _run(args: argparse.Namespace) -> int:
    from .harness.ranks import find_ranks
    from .jobs.show import wrong_ranks

    ranks = find_ranks()
    tell = say if ranks.rank == 0 else hush  # every rank runs, the first one speaks
    try:
        sweep, store, plan = _planned(args)
    except ValueError as error:
        return _complain(str(error) if ranks.rank == 0 else "", 2)
    for line in (plan.explain(), *wrong_ranks(plan.todo, ranks.size, typed(args))):
        tell(line)
    if ranks.agree(bool(plan.waves)):
        from .jobs.here import run_here  # torch comes with it, which a sweep that is complete need not wait for

        run_here(plan, store, ranks, tell, args.cell_timeout)
    return _finish(args, sweep, store) if ranks.rank == 0 else 0


def _finish(args: argparse.Namespace, sweep: Sweep, store: Store) -> int:
    from .analysis.render import terminal_table
    from .jobs.plan import plan
    from .results.frame import to_frame

    ended = plan(sweep, store, ())
    records = list(store.records(sweep.keys()))
    say(terminal_table(to_frame(records)) if records else "no cell has a record yet")
    states = set(ended.counts())
    if states <= {"ok"}:
        return 0
    if states <= {"ok", "todo"}:
        return _complain(f"not every cell has run ({ended.tally()})", 1)
    return _complain(f"not every cell is ok ({ended.tally()}); `lacuna why {typed(args)}` says why", 1)


def _submit(args: argparse.Namespace) -> int:
    from .jobs.site import read_site
    from .jobs.submit import dry_run, submit

    sweep, store, plan = _planned(args)
    task = (plan, typed(args), store, args.site)
    if args.dry_run:
        say(dry_run(*task))
        return 0
    submit(*task)
    return 0 if read_site(args.site).executor == "slurm" else _finish(args, sweep, store)


def _status(args: argparse.Namespace) -> int:
    from .jobs import show

    _, _, plan = _planned(args)
    say(show.status(plan))
    return 0


def _why(args: argparse.Namespace) -> int:
    from .jobs import show
    from .jobs.plan import cells_in

    _, store, plan = _planned(args)
    told = list(show.failures(plan, store, args.key))
    say("\n\n".join(told) if told else f"nothing failed; {cells_in(len(plan.todo))} to run")
    return 0


def _frame(args: argparse.Namespace, source: Path) -> tuple[pd.DataFrame, str]:
    """The records of a sweep or of a collected file, and their title."""
    from .results.frame import read, to_frame

    if is_table(source):
        return read(source), source.stem
    sweep, store = _read(args, source)
    records = list(store.records(sweep.keys()))
    if not records:
        raise ValueError(f"no cell of {source} has a record in {store.root}; `lacuna run` it, or see --store")
    return to_frame(records), sweep.name


def _collect(args: argparse.Namespace) -> int:
    from .results.frame import write

    check_settings(args, (args.sweep,))
    frame, _ = _frame(args, args.sweep)
    write(frame, args.output)
    say(f"{args.output}: {len(frame)} rows")
    return 0


def _sources(args: argparse.Namespace) -> tuple[Sources, str]:
    """The records and times of sweeps and files, those of `--where`, and their title."""
    from .analysis.sources import of_frame, read, together

    check_settings(args, args.source)
    found, titles = [], []
    for source in args.source:
        if is_table(source):
            found.append(read(source))
            titles.append(source.stem)
        else:
            frame, title = _frame(args, source)
            found.append(of_frame(frame))
            titles.append(title)
    return together(found).where(args.where), ", ".join(titles)


def _report(args: argparse.Namespace) -> int:
    found, title = _sources(args)
    from .analysis.drawings import processes
    from .analysis.render import terminal_tables
    from .analysis.report import write_sources

    chosen = [part for condition in args.where for part in ("--where", condition)]
    chosen += ["--paper", args.paper] if args.paper else []
    command = shlex.join(["lacuna", "report", *map(str, args.source), "-o", str(args.output), *chosen])
    paths = write_sources(found, args.output, title, command, args.paper.replace("-", "_"), processes(found))
    if len(found.archive.lean):
        say(terminal_tables(found.study.points, "method"))
    say("\n".join(map(str, paths)))
    return 0


def _table(args: argparse.Namespace) -> int:
    from .analysis.doubts import doubtful
    from .analysis.kernel_table import lay_out
    from .analysis.render import aligned, terminal_tables

    found, _ = _sources(args)
    if len(found.archive.lean) or not len(found.bench):
        say(terminal_tables(found.study.points, args.by))
    if len(found.bench):
        say(aligned(lay_out(found.bench)))
    say("\n".join(doubtful(found.archive)))
    return 0


def _diff(args: argparse.Namespace) -> int:
    from .analysis.diff import compare

    check_settings(args, (args.before, args.after))
    found = compare(_frame(args, args.before)[0], _frame(args, args.after)[0])
    say(found.text)
    return int(found.worse)


def _verify(args: argparse.Namespace) -> int:
    from .jobs.operations import verified

    verdicts = list(verified(args))
    return int(not all(verdict["passed"] for verdict in verdicts))


def _bench(args: argparse.Namespace) -> int:
    from .jobs.operations import timed

    told = timed(args)
    return int(any(row["status"] != "ok" and not row.get("baseline") for row in told))  # baselines may be missing here


def _doctor(args: argparse.Namespace) -> int:
    from .jobs.doctor import examine

    for finding in examine(args.store):
        say(str(finding))
    return 0


def _weights(args: argparse.Namespace) -> int:
    from .models import difference
    from .models.card import export
    from .results.store import Store

    work = {
        "export": lambda: export(Store(args.store).get_artifact(args.key), args.output),
        "diff": lambda: difference.write(args.base, args.tuned, args.output),
        "recover": lambda: difference.recover(args.base, args.difference, args.output),
    }
    work[args.what]()
    say(f"written: {args.output}")
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "bench": _bench,
    "collect": _collect,
    "diff": _diff,
    "doctor": _doctor,
    "list": _list,
    "plan": _plan,
    "report": _report,
    "run": _run,
    "status": _status,
    "submit": _submit,
    "table": _table,
    "verify": _verify,
    "weights": _weights,
    "why": _why,
}
