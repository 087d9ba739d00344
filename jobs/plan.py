"""What is left to do of a sweep: waves of groups, so that what others need comes first and a model is loaded once."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..results.cell import Cell
from ..results.fields import near
from ..results.record import STATUSES
from ..results.store import Head, Store
from .sweep import Sweep


def cells_in(count: int) -> str:
    """A number of cells in words."""
    return f"{count} cell{'s' * (count != 1)}"


@dataclass(frozen=True)
class Group:
    """Cells that share a load of the model: equal in model, dtype, device and ranks."""

    cells: tuple[Cell, ...]

    def __str__(self) -> str:
        first = self.cells[0]
        place = f"{first.dtype}, {first.device}, {first.ranks} rank{'s' * (first.ranks > 1)}"
        return f"{first.model.name} ({place}): {cells_in(len(self.cells))}"

    def to_json(self) -> dict[str, Any]:
        """What is shared, and the keys."""
        first = self.cells[0]
        shared = {"model": first.model.name, "dtype": first.dtype, "device": first.device, "ranks": first.ranks}
        return {**shared, "cells": [cell.key for cell in self.cells]}


@dataclass(frozen=True)
class Plan:
    """A sweep held against a store.

    Attributes:
        cells: those that others need first, then those that the sweep asks for.
        heads: key -> status and reason, of the cells that have a record.
        todo: the cells that are to run, in the order of `cells`.
        waves: `todo`, in groups; a cell comes in a later wave than those that it needs.
        waiting: key -> why the cell cannot run, for those that need a cell which failed.
    """

    name: str
    cells: tuple[Cell, ...]
    heads: Mapping[str, Head]
    todo: tuple[Cell, ...] = ()
    waves: tuple[tuple[Group, ...], ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def states(self) -> dict[str, str]:
        """Each cell's key -> its status, or `todo`, or `waits`, or `idle`: an artifact that nobody takes any more."""
        states = {cell.key: self.heads[cell.key].status if cell.key in self.heads else "idle" for cell in self.cells}
        return states | dict.fromkeys(self.waiting, "waits") | {cell.key: "todo" for cell in self.todo}

    def counts(self) -> dict[str, int]:
        """How many cells are in which state."""
        found = Counter(self.states.values())
        return {state: found[state] for state in (*STATUSES, "todo", "waits", "idle") if found[state]}

    def tally(self) -> str:
        """The counts in words."""
        return ", ".join(f"{n} {state}" for state, n in self.counts().items())

    def reason(self, cell: Cell) -> str:
        """Why a cell is not ok, as far as it is known."""
        head = self.heads.get(cell.key)
        return self.waiting.get(cell.key) or (head.reason if head else "")

    def explain(self) -> str:
        """The plan in words."""
        lines = [f"{self.name}: {cells_in(len(self.cells))}: {self.tally()}"]
        for number, wave in enumerate(self.waves, 1):
            lines += [f"wave {number}: {cells_in(sum(len(group.cells) for group in wave))}"]
            lines += [f"  {group}" for group in wave]
        return "\n".join([*lines, *(f"{key} {why}" for key, why in self.waiting.items())])

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        cells = [
            {"key": c.key, "state": self.states[c.key], "reason": self.reason(c), "cell": c.to_json()}
            for c in self.cells
        ]
        waves = [[group.to_json() for group in wave] for wave in self.waves]
        return {"name": self.name, "counts": self.counts(), "waves": waves, "cells": cells}


def plan(sweep: Sweep, store: Store, retry: Collection[str] = ("preempted",)) -> Plan:
    """Find what is to run: what has no record, or one whose status is in `retry`, and what that needs.

    Raises:
        ValueError: `retry` names no status.
    """
    for status in retry:
        if status not in STATUSES:
            raise ValueError(f"unknown status {status!r} to retry: {near(status, STATUSES)}")
    known = {cell.key: cell for cell in (*sweep.needed, *sweep.cells)}
    heads = store.heads(known)
    ended = {key: head.status for key, head in heads.items() if head.status not in retry}
    chosen = _Chosen(known, ended)
    for cell in sweep.cells:
        chosen.wave(cell)
    todo = tuple(cell for cell in known.values() if chosen.waves.get(cell.key, -1) >= 0)
    grouped = tuple(_groups(wave) for wave in _waves(todo, chosen.waves))
    return Plan(sweep.name, tuple(known.values()), heads, todo, grouped, chosen.waiting)


def blocked(cell: Cell, statuses: Mapping[str, str]) -> str | None:
    """Why a cell cannot run when the cells that it needs ended so; None if it can."""
    failed = ((key, statuses[key]) for _, key in cell.needs if statuses.get(key, "ok") != "ok")
    return next((f"waits for {key} which is {status}" for key, status in failed), None)


class _Chosen:
    """Gives each cell its wave, walking from the cells that are wanted down to those that they need."""

    def __init__(self, known: Mapping[str, Cell], ended: Mapping[str, str]) -> None:
        self.known, self.ended = known, ended
        self.waves: dict[str, int] = {}
        self.waiting: dict[str, str] = {}

    def wave(self, cell: Cell) -> int:
        """The cell's wave, from 0; -1 if it is not to run."""
        if cell.key not in self.waves:
            self.waves[cell.key] = -1 if cell.key in self.ended else self._later(cell)
        return self.waves[cell.key]

    def _later(self, cell: Cell) -> int:
        last = max((self.wave(self.known[key]) for _, key in cell.needs), default=-1)
        if why := blocked(cell, {key: self._ending(key) for _, key in cell.needs}):
            self.waiting[cell.key] = why
            return -1
        return last + 1

    def _ending(self, key: str) -> str:
        return "waiting itself" if key in self.waiting else self.ended.get(key, "ok")


def _waves(todo: Iterable[Cell], depth: Mapping[str, int]) -> list[list[Cell]]:
    """Cells that others need, by depth; then all the rest together, so that nobody waits for what nobody needs."""
    todo = tuple(todo)
    needed = {key for cell in todo for _, key in cell.needs}
    last = max((depth[cell.key] for cell in todo if cell.key in needed), default=-1) + 1
    waves: dict[int, list[Cell]] = {number: [] for number in range(last + 1)}
    for cell in todo:
        waves[depth[cell.key] if cell.key in needed else last].append(cell)
    return [wave for wave in waves.values() if wave]


def _groups(cells: Iterable[Cell]) -> tuple[Group, ...]:
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return tuple(Group(tuple(members)) for members in groups.values())
