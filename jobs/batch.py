"""A plan cut for a site: arrays of jobs, each with the cells that share one load of a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..results.cell import Cell
from ..results.store import Store
from .site import Site, max_array

if TYPE_CHECKING:
    from .plan import Plan


@dataclass(frozen=True)
class Batch:
    """Jobs of one wave and of equal shape: one job array. A job is the tuple of its cells."""

    wave: int
    ranks: int
    device: str
    jobs: tuple[tuple[Cell, ...], ...]

    def __str__(self) -> str:
        cells = sum(map(len, self.jobs))
        return f"wave {self.wave} ({self.device}): cells {cells}, jobs {len(self.jobs)}, ranks of each {self.ranks}"


def batches(plan: Plan, store: Store, site: Site) -> list[Batch]:
    """Cut waves into arrays of jobs of at most `cells_per_job` cells; what is ok in the store is left out.

    Raises:
        ValueError: the site does not fit the sweep: ranks that do not fill its nodes, or no GPU.
    """
    longest = max_array(site)
    found = []
    for number, wave in enumerate(plan.waves, 1):
        jobs: dict[tuple[int, str], list[tuple[Cell, ...]]] = {}
        for group in wave:
            shape = (group.cells[0].ranks, group.cells[0].device)
            missing = _missing(group.cells, store)
            jobs.setdefault(shape, []).extend(map(tuple, _parts(missing, site.cells_per_job)))
        for (ranks, device), of_shape in jobs.items():
            site.shape(ranks), site.gpus(device)  # all is refused before anything is submitted
            found += [Batch(number, ranks, device, tuple(part)) for part in _parts(of_shape, longest)]
    return found


def _missing(cells: Sequence[Cell], store: Store) -> list[Cell]:
    heads = store.heads(c.key for c in cells)
    return [c for c in cells if c.key not in heads or heads[c.key].status != "ok"]


def _parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    yield from (items[i : i + most] for i in range(0, len(items), most))
