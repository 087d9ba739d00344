"""Which cells a job still has to run, in which order, and which of them it is at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ..results.cell import Cell
from ..results.claim import claimed, me
from ..results.store import Head, Store


def left(cells: Sequence[Cell], store: Store, asked: str, tell: Callable[[str], None]) -> list[Cell]:
    """The cells that have not ended since `asked` (UTC, ISO 8601), without those that wait for a cell that failed.

    Those that were begun before come last: one that takes its whole job with it, for want of memory, would otherwise
    keep the others from being run at each try.
    """
    heads = store.heads({k for c in cells for k in (c.key, *(need for _, need in c.needs))})
    found = []
    for cell in (c for c in cells if not _ended(store, heads.get(c.key), asked)):
        failed = [k for _, k in cell.needs if k not in heads or heads[k].status != "ok"]
        if failed:
            tell(f"{cell.key} waits for {', '.join(failed)}: not there, or failed")
        else:
            found.append(cell)
    return sorted(found, key=lambda cell: store.begun(cell.key) > 0)


def at_work(cells: Sequence[Cell], store: Store) -> Cell | None:
    """The cell that was begun last, or wrote last; the first where none was begun, and None of none.

    A cell that another process is at is not this job's.
    """
    ours = (cell for cell in cells if not _is_elsewhere(store.claim(cell.key)))
    return max(ours, key=lambda cell: store.begun(cell.key), default=None)


def _is_elsewhere(claim: Path) -> bool:
    if not claim.exists():
        return False
    with claimed(claim) as asked:
        return asked.holder not in ("", me())


def _ended(store: Store, head: Head | None, asked: str) -> bool:
    if head is None or head.status in ("ok", "preempted"):
        return head is not None and head.status == "ok"
    started = store.get(head.key).started
    return bool(started) and datetime.fromisoformat(started) >= datetime.fromisoformat(asked)
