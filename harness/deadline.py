"""An end to a cell that takes too long."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class CellTimeoutError(Exception):
    """The cell took longer than it may."""


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Raise CellTimeoutError in this thread when time is up."""
    if seconds is None:
        yield
        return

    def ring(*_: Any) -> None:
        raise CellTimeoutError(f"took longer than {seconds:g} s (--cell-timeout)")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
