"""A block of a sweep: its axes, which of them advance together, and the points of their product."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..results.cell import Cell, Spec
from ..results.fields import near
from .arguments import Axis, Choice
from .document import Faults
from .exclude import Rule
from .inputs import Inputs

PARTS = ("model", "method", "task")


@dataclass(frozen=True)
class Zip:
    """Axes that advance together."""

    names: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Block:
    """A sweep without further structure.

    Attributes:
        listed: those of PARTS that are lists.
        complete: whether everything in PARTS was understood.
    """

    models: Sequence[Spec]
    methods: Sequence[Choice]
    tasks: Sequence[Choice]
    settings: Sequence[Axis]
    listed: frozenset[str]
    zips: Sequence[Zip]
    rules: Sequence[Rule]
    complete: bool = True

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each axis's name and length, 0 for one that is a single value."""
        for name, choices in zip(PARTS, (self.models, self.methods, self.tasks), strict=True):
            yield name, len(choices) if name in self.listed else 0
        for axis in self._axes():
            yield axis.name, len(axis.values) if axis.listed else 0

    def _axes(self) -> Iterator[Axis]:
        for choice in (*self.methods, *self.tasks):
            yield from choice.axes
        yield from self.settings

    def line(self, spec: Spec) -> int:
        """Where a method or task of one of these cells stands in the file."""
        choices = (*self.methods, *self.tasks)
        return next(one.line for one in choices if any(made is spec for made in one.made.values()))

    def cells(self, inputs: Inputs) -> Iterator[Cell]:
        """A cell for each point: models, methods and tasks as in the file, then their arguments, then the settings.

        The cells that they need are not yet known to them.
        """
        step = {name: f"zip {n}" for n, one in enumerate(self.zips) for name in one.names}
        names = [axis.name for axis in self.settings]
        for (i, model), (j, method), (k, task) in itertools.product(
            enumerate(self.models), enumerate(self.methods), enumerate(self.tasks)
        ):
            start: dict[str, int] = {}
            pairs = zip(PARTS, (i, j, k), strict=True)
            if not all(start.setdefault(step.get(name, name), at) == at for name, at in pairs):
                continue
            axes = (*method.axes, *task.axes, *self.settings)
            first, second = len(method.axes), len(method.axes) + len(task.axes)
            for at in _indexes(axes, step, start):
                values = (axis.values[i] for axis, i in zip(self.settings, at[second:], strict=True))
                specs = (method.spec(at[:first], inputs), task.spec(at[first:second], inputs))
                yield Cell(model, *specs, **dict(zip(names, values, strict=True)))


def _indexes(axes: Sequence[Axis], step: Mapping[str, str], start: Mapping[str, int]) -> Iterator[tuple[int, ...]]:
    """For each point, the index of every axis; axes of one zip share theirs."""
    lengths = {step.get(axis.name, axis.name): len(axis.values) for axis in axes}
    ranges = [[start[name]] if name in start else range(n) for name, n in lengths.items()]
    places = [list(lengths).index(step.get(axis.name, axis.name)) for axis in axes]
    for point in itertools.product(*ranges):
        yield tuple(point[place] for place in places)


def check_zips(zips: Iterable[Zip], blocks: Iterable[Block], faults: Faults) -> None:
    """Find out whether the zipped axes are there, are lists, and are equally long."""
    lengths: dict[str, set[int]] = {}
    for block in blocks:
        for name, length in block.sizes():
            lengths.setdefault(name, set()).add(length)
    seen: set[str] = set()
    for one in zips:
        _check_zip(one, lengths, faults)
        for name in seen.intersection(one.names):
            faults.add(one.line, f"zip names {name} twice")
        seen.update(one.names)


def _check_zip(one: Zip, lengths: Mapping[str, set[int]], faults: Faults) -> None:
    for name in one.names:
        if name not in lengths:
            faults.add(one.line, f"zip names an unknown axis {name!r}: {near(name, lengths)}")
        elif 0 in lengths[name]:
            faults.add(one.line, f"zip names {name}, which is a single value, expected a list")
    if len(set(one.names)) < len(one.names):
        faults.add(one.line, "zip names an axis twice")
    if len(set().union(*(lengths.get(name, set()) for name in one.names))) > 1:
        told = ", ".join(f"{name} has {'/'.join(map(str, sorted(lengths.get(name, set()))))}" for name in one.names)
        faults.add(one.line, f"zipped axes must be equally long: {told}")
