"""Whose turn a cell is, where several runs have one store: each cell is computed by one of them at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from ..results import plugins
from ..results.cell import Cell
from ..results.claim import claimed
from ..results.store import Head, Store
from .world import World


@dataclass(frozen=True)
class Turn:
    """A cell's; it is ours where both are empty.

    Attributes:
        elsewhere: who is at this cell, or at one that it needs.
        ended: the status that another run has given it since this one was planned.
    """

    elsewhere: str = ""
    ended: str = ""


@dataclass
class Turns:
    """Claims of one run; rank 0 asks, and all ranks learn what came of it.

    Attributes:
        known: heads of the records that there were when this run was planned.
        elsewhere: keys that others were at, when asked last.
    """

    world: World
    store: Store
    tell: Callable[[str], None]
    known: Mapping[str, Head]
    elsewhere: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)

    @contextmanager
    def take(self, cell: Cell) -> Iterator[Turn]:
        """The cell is ours while this is entered, unless the turn says otherwise."""
        with ExitStack() as held:
            turn = next((Turn(elsewhere=key) for _, key in cell.needs if key in self.elsewhere), None)
            if turn is None:
                asked = self._ask(cell, held) if self.world.ranks.rank == 0 else Turn()
                turn = self.world.gather(asked)[0]
            if turn.elsewhere:
                self.elsewhere.add(cell.key)
            yield turn

    def _ask(self, cell: Cell, held: ExitStack) -> Turn:
        self.store.begin()
        claim = held.enter_context(claimed(self.store.claim(cell.key)))
        if not claim.sure:
            self._once("this file system has no locks: what two runs begin on this store at a time is computed twice")
        if claim.holder:
            self._once(f"{_named(cell)} is left to {claim.holder}, which is at it")
            return Turn(elsewhere=claim.holder)
        head = self.store.head(cell.key)
        if head is None or head.status == "preempted" or head == self.known.get(cell.key):
            return Turn()
        self._once(f"{_named(cell)} was ended meanwhile by another run: {head.status}")
        if head.status in ("ok", "invalid"):
            self.end(cell.key)
        return Turn(ended=head.status)

    def end(self, key: str) -> None:
        """Nobody will ask for this cell's lock any more, or who does finds its record first."""
        self.store.claim(key).unlink(missing_ok=True)

    def wait(self, left: Sequence[Cell], seconds: float) -> None:
        """Wait before others are asked again for what they are at."""
        self._once(f"{_counted(left)} left to other runs; this job waits for them")
        time.sleep(seconds)

    def sum_up(self, left: Sequence[Cell]) -> None:
        """Say what this run has not done because others are at it."""
        if left:
            self.tell(f"{_counted(left)} left to other runs on this store; the same command takes over what they leave")

    def _once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.tell(line)


def _counted(left: Sequence[Cell]) -> str:
    return "1 cell is" if len(left) == 1 else f"{len(left)} cells are"


def _named(cell: Cell) -> str:
    return f"{cell.key} {plugins.label('methods', cell.method)} x {plugins.label('tasks', cell.task)}"
