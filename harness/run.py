"""run(cell) -> Record: the one verb. Groups share a model load, rank 0 writes, a cell that fails is a Record too."""

from __future__ import annotations

import functools
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import torch

from ..models import ledger, shard
from ..models.audit import overdrawn
from ..models.load import load_model
from ..models.method import Method
from ..models.shard import Shard
from ..results import plugins
from ..results.cell import Cell, Spec
from ..results.record import Record, Status
from ..results.store import Head, Store
from .deadline import CellTimeoutError, deadline
from .journal import Journal
from .lm import LM
from .provenance import provenance
from .ranks import Ranks
from .task import Outcome
from .turns import Turns
from .world import World

HOST_FULL = "can't allocate memory"  # how torch says that a CPU has none left: a plain RuntimeError


@dataclass(frozen=True)
class Try:
    """How one rank ended a cell, and when: the first to fail knows why, the others only miss it."""

    status: Status
    reason: str = ""
    trace: str = ""
    ended: float = field(default_factory=time.time)
    outcome: Outcome = field(default_factory=lambda: Outcome({}))
    sums: torch.Tensor | None = None


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    ranks: Ranks,
    tell: Callable[[str], None],
    cell_timeout_s: float | None = None,
    known: Mapping[str, Head] | None = None,
    wait_s: float | None = None,
) -> dict[str, str]:
    """Run cells in the given order, one model load for each run of cells of one group; returns key -> status.

    Every rank calls this with the same store; what rank 0 was given counts. Cells that another run is at are asked for
    again after all others: as long as that changes anything, and then left to it; or, with `wait_s`, each so many
    seconds until none is left. What another run has ended since records were `known` (default: now) is not run again.

    Raises:
        ValueError: cells for another number of ranks, or for several kinds of device at once on several ranks.
    """
    cells = ranks.agree(list(cells))
    if not cells:
        return {}
    _check(cells, ranks)
    world = World(ranks, cells[0].device)
    world.join()
    try:
        cells = world.gather(cells)[0]
        heads = known if known is not None or ranks.rank > 0 else store.heads(cell.key for cell in cells)
        turns = Turns(world, store, tell, heads or {})
        return _Run(world, store, tell, cell_timeout_s, len(cells), turns, wait_s).all(cells)
    finally:
        world.leave()


def _check(cells: Sequence[Cell], ranks: Ranks) -> None:
    wrong = {c.ranks for c in cells} - {ranks.size}
    if wrong:
        raise ValueError(f"cells for {sorted(wrong)} ranks were given to {ranks.size}")
    if ranks.size > 1 and len({c.device for c in cells}) > 1:
        raise ValueError(
            "cells for cpu and cuda cannot share ranks: run them apart (--set device=cpu, --set device=cuda)"
        )


@dataclass
class _Run:
    world: World
    store: Store
    tell: Callable[[str], None]
    timeout_s: float | None
    total: int
    turns: Turns
    wait_s: float | None = None
    done: int = 0

    def all(self, cells: Sequence[Cell]) -> dict[str, str]:
        statuses: dict[str, str] = {}
        left, before = list(cells), -1
        while left and (len(left) != before or self.wait_s is not None):
            if len(left) == before and self.wait_s is not None:
                self.turns.wait(left, self.wait_s)
            before = len(left)
            self.turns.elsewhere.clear()
            groups = groupby(left, key=lambda c: (c.group, _shared(c)))
            left = [cell for _, group in groups for cell in self._group(list(group), statuses)]
        self.turns.sum_up(left)
        return statuses

    def _group(self, cells: list[Cell], statuses: dict[str, str]) -> Iterator[Cell]:
        """Run what is ours; gives the cells that others are at."""
        lm: LM | Try | None = None
        for cell in cells:
            stuck = [key for _, key in cell.needs if statuses.get(key, "ok") != "ok"]
            if stuck:  # no record: it runs once what it needs is mended
                self.tell(f"{cell.key} {cell.method} x {cell.task} waits for {stuck[0]}, which is {statuses[stuck[0]]}")
                continue
            with self.turns.take(cell) as turn:
                if turn.elsewhere:
                    yield cell
                elif turn.ended:
                    statuses[cell.key], self.done = turn.ended, self.done + 1
                else:
                    lm = _guarded(functools.partial(_load, cell, self.world, self.store)) if lm is None else lm
                    statuses[cell.key], agreed = self._one(cell, lm)
                    lm = lm if agreed else None

    def _one(self, cell: Cell, lm: LM | Try) -> tuple[Status, bool]:
        """How the cell ended, and whether all ranks ended it alike."""
        start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
        attempt = lm if isinstance(lm, Try) else self._try(cell, lm)  # a model that cannot be loaded fails them all
        record, agreed = self._join(cell, attempt)
        seconds = round(time.perf_counter() - start, 3)
        status = self._write(replace(record, started=started, seconds=seconds), attempt)
        if not agreed:
            self._recover()
        return status, agreed

    def _try(self, cell: Cell, lm: LM) -> Try:
        with deadline(self.timeout_s):
            attempt = _guarded(functools.partial(_measure, cell, lm, self.store, self.tell))
        if attempt.status != "ok" and self.world.device == "cuda":
            torch.cuda.empty_cache()  # what the failed cell held is not the next one's
        return attempt

    def _join(self, cell: Cell, attempt: Try) -> tuple[Record, bool]:
        """Rank 0's record of what all ranks say, and whether they ended alike."""
        ends = self.world.gather(replace(attempt, outcome=Outcome({}), trace=attempt.trace[-4000:]))
        worst = min(ends, key=lambda end: (end.status == "ok", end.ended))
        agreed = len({(end.status, end.reason) for end in ends}) == 1
        counted = (
            ledger.summary([e.sums for e in ends if e.sums is not None]) if agreed and worst.status == "ok" else {}
        )
        status, reason = _verdict(cell, worst, attempt.outcome, counted)
        metrics = {k: float(v) for k, v in attempt.outcome.metrics.items() if math.isfinite(v)}
        return Record(
            cell=cell,
            status=status,
            reason=reason if agreed else f"rank {ends.index(worst)} alone: {reason}",
            trace=worst.trace,
            metrics=metrics if agreed else {},
            samples=attempt.outcome.samples if agreed else (),
            ledger=counted,
            provenance=provenance(self.world.ranks, cell.device),
        ), agreed

    def _write(self, record: Record, attempt: Try) -> Status:
        self.done += 1
        if self.world.ranks.rank == 0:
            if attempt.outcome.artifact is not None and record.status == "ok":
                made = self.store.put_artifact(record.key, attempt.outcome.artifact)
                record = replace(record, artifact=made)
            self.store.put(record)
            if record.status in ("ok", "invalid"):
                self.store.unfinished(record.key).unlink(missing_ok=True)
                self.turns.end(record.key)
                shutil.rmtree(self.store.work(record.key), ignore_errors=True)
            self.tell(_line(record, self.done, self.total))
        self.world.gather(None)  # an artifact is there before the next cell asks for it
        return record.status

    def _recover(self) -> None:
        """After a failure on some ranks only, collectives no longer match: join anew; the model is loaded again."""
        if self.world.ranks.size > 1:
            self.world.rejoin()


def _guarded(work: Callable[[], Any]) -> Any:
    """What work gives, or how it failed."""
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _failed("oom", error)  # says how many bytes were asked for
    except CellTimeoutError as error:
        return _failed("timeout", error)
    except Exception as error:  # noqa: BLE001 - whatever a plug-in does, its group goes on
        return _failed("oom" if HOST_FULL in str(error) else "error", error)


def _load(cell: Cell, world: World, store: Store) -> LM:
    trained = dict(cell.needs).get("model")
    spec = cell.model if trained is None else replace(cell.model, source=str(store.get_artifact(trained)))
    model, tokenizer = load_model(spec, cell.dtype, cell.device)
    ranks = world.ranks
    held = Shard.whole() if _shared(cell) == "data" else shard.split(model, ranks.rank, ranks.size)
    return LM(model, tokenizer, held, world)


def _shared(cell: Cell) -> str:
    """What the ranks share while the cell's task runs: the model's tensors, or the data."""
    return str(plugins.describe("tasks", cell.task.name).constants.get("ranks", "tensor"))


def _measure(cell: Cell, lm: LM, store: Store, tell: Callable[[str], None]) -> Try:
    """One cell on this rank, on a model that the method leaves as it was; goes on where an earlier run was killed."""
    torch.manual_seed(cell.seed)
    method: Method = make("methods", cell.method)
    task = make("tasks", cell.task)
    artifacts = {argument: store.get_artifact(key) for argument, key in cell.needs}
    if lm.world.ranks.rank == 0:
        store.start(cell.key)
    journal = Journal.open(store.unfinished(cell.key), lm.world, tell)
    with lm.under(method, cell, artifacts, journal, store.work(cell.key)) as session:
        outcome = task.run(session)
        return Try("ok", outcome=outcome, sums=session.sums())


def make(kind: str, spec: Spec) -> Any:
    """The plug-in object that a Spec names.

    Raises:
        ValueError: unknown name, or arguments that do not go together.
    """
    made = plugins.load(kind, spec.name)
    if made.version != spec.version:
        raise ValueError(f"{spec.name} has version {made.version} here, the cell asks for {spec.version}: plan again")
    args = plugins.defaults(plugins.describe(kind, spec.name), spec.args) | dict(spec.args)
    return made(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})


def _verdict(cell: Cell, worst: Try, outcome: Outcome, counted: dict[str, Any]) -> tuple[Status, str]:
    """Invalid: numbers that are no numbers, or a method that should leave gaps and left none."""
    if worst.status != "ok":
        return worst.status, worst.reason
    wrong = sorted(k for k, v in outcome.metrics.items() if not math.isfinite(v))
    if wrong:
        return "invalid", f"{', '.join(wrong)} came out as no finite number"
    if outcome.invalid:
        return "invalid", outcome.invalid
    decode = counted.get("decode", {})
    if make("methods", cell.method).expects_gaps() and decode.get("density", 1.0) >= 1:
        ran = f"attended every row of {decode['tokens']} tokens" if decode.get("tokens") else "never acted on a row"
        return "invalid", f"{cell.method} {ran}: nothing here is sparse (a budget beyond the text's length?)"
    over = overdrawn(counted)
    return ("invalid", f"{cell.method} {over}") if over else ("ok", "")


def _failed(status: Status, error: BaseException) -> Try:
    text = str(error).strip().splitlines() or [""]
    reason = text[0] if isinstance(error, (ValueError, CellTimeoutError)) else f"{type(error).__name__}: {text[0]}"
    return Try(status, reason, trace="".join(traceback.format_exception(error)))


def _line(record: Record, done: int, total: int) -> str:
    head = _headline(record.cell.task.name)
    value = f"{head} {record.metrics[head]:.4g}" if head in record.metrics else record.reason
    density = record.ledger.get("decode", {}).get("density")
    shown = "" if density is None else f"  density {density:.3f}"
    what = f"{plugins.label('methods', record.cell.method)} x {plugins.label('tasks', record.cell.task)}"
    return f"[{done}/{total}] {record.status:<7} {what}  {value}{shown}  {record.seconds:.1f} s"


@functools.cache
def _headline(task: str) -> str:
    """The metric that stands for a task."""
    return str(plugins.describe("tasks", task).constants.get("headline", ""))
