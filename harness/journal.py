"""What a cell has measured so far: written down batch by batch, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .world import World

TELL_EVERY_S = 20.0


class Item(Protocol):
    """One sample to be measured; its id is the same in every run of the cell."""

    @property
    def id(self) -> str:
        """The name under which its result is kept."""


T = TypeVar("T", bound=Item)
Batches = Callable[[Sequence[T]], Iterable[list[T]]]


def _quiet(_: str) -> None:
    pass


@dataclass
class Journal:
    """Results by sample id, and the ledger's sums that belong to them.

    Attributes:
        path: where rank 0 writes one line a batch; None: nowhere.
        done: id -> result, those of an earlier, killed run among them.
        before: this rank's ledger sums of that run.
        tell: where progress is told.
    """

    path: Path | None = None
    world: World | None = None
    tell: Callable[[str], None] = _quiet
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: Tensor | None = None

    @classmethod
    def open(cls, path: Path, world: World, tell: Callable[[str], None]) -> Journal:
        """Go on with what rank 0 finds; a line that the end of a process cut short is dropped."""
        lines = world.gather(list(_whole_lines(path)) if world.ranks.rank == 0 else [])[0]
        done = {sample["id"]: sample for line in lines for sample in line["samples"]}
        sums = torch.tensor(lines[-1]["sums"][world.ranks.rank], dtype=torch.float64) if lines else None
        if done:
            tell(f"goes on after {len(done)} samples of an earlier run")
        return cls(path, world, tell, done, sums)

    def whole(self, sums: Tensor) -> Tensor:
        """The ledger's sums of this run and of the one before."""
        if self.before is None:
            return sums
        if not len(sums):  # everything was done before
            return self.before
        whole = self.before + sums
        whole[:, 2] = self.before[:, 2].maximum(sums[:, 2])  # bytes held are the most there were
        return whole

    def each(
        self,
        items: Sequence[T],
        batches: Batches[T],
        work: Callable[[list[T]], Sequence[Mapping[str, Any]]],
        sums: Callable[[], Tensor],
    ) -> list[dict[str, Any]]:
        """Results of all items in their order; only those that are not written down yet are worked on.

        Args:
            items: samples with ids that differ.
            batches: cuts the missing ones into batches.
            work: gives the results of a batch.
            sums: the ledger's sums so far.

        Raises:
            ValueError: two samples of one name.
        """
        named = Counter(i.id for i in items).most_common(1)
        if named and named[0][1] > 1:
            raise ValueError(
                f"{named[0][1]} samples are named {named[0][0]!r}: give the rows of the data names that differ"
            )
        todo = [i for i in items if i.id not in self.done]
        clock = _Clock(len(items), len(todo), self.tell)
        for batch in batches(todo):
            results = [{"id": i.id, **r} for i, r in zip(batch, work(batch), strict=True)]
            self.done.update({r["id"]: r for r in results})
            self._write(results, sums)
            clock.advance(len(batch))
        return [self.done[i.id] for i in items]

    def _write(self, results: list[dict[str, Any]], sums: Callable[[], Tensor]) -> None:
        if self.path is None or self.world is None:
            return
        everyone = self.world.gather(self.whole(sums()).tolist())
        if self.world.ranks.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"samples": results, "sums": everyone, "done": len(self.done)}) + "\n")


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines that were written to their end; what follows them is cut off, so that more can be appended.

    Two processes may run one cell and write into one file. A line whose sums are not of the samples before it and its
    own is the other one's, and ends what can be gone on from.
    """
    if not path.exists():
        return
    raw, good, names = path.read_bytes(), 0, set[str]()
    for line in raw.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        names.update(sample["id"] for sample in entry["samples"])
        if not line.endswith(b"\n") or entry.get("done") != len(names):
            break
        good += len(line)
        yield entry
    if good < len(raw):
        with path.open("r+b") as file:
            file.truncate(good)


class _Clock:
    """Tells every now and then how many samples are done, and how long the others will take."""

    def __init__(self, total: int, todo: int, tell: Callable[[str], None]) -> None:
        self.total, self.todo, self.tell = total, todo, tell
        self.count, self.start = 0, time.monotonic()
        self.told = self.start

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.count += count
        now = time.monotonic()
        left_s = (now - self.start) / self.count * (self.todo - self.count)
        if now - self.told >= TELL_EVERY_S and self.count < self.todo:
            self.told = now
            self.tell(f"  {self.total - self.todo + self.count} of {self.total} samples, about {spoken(left_s)} left")


def spoken(seconds: float) -> str:
    """A duration as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
