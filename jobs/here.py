"""Runs a plan in this process, or with the ranks that mpirun or Slurm started beside it."""

from __future__ import annotations

from collections.abc import Callable

from ..harness.ranks import Ranks
from ..harness.run import run_cells
from ..results.store import Store
from .plan import Plan, blocked


def run_here(
    plan: Plan, store: Store, ranks: Ranks, tell: Callable[[str], None], cell_timeout_s: float | None
) -> dict[str, str]:
    """Run wave after wave the cells that want as many ranks as there are; key -> status of those that ran.

    Which cells of a later wave can run is decided from what `run_cells` returned, never from the store: ranks that each
    asked a network file system could disagree.
    """
    statuses: dict[str, str] = {}
    plan = ranks.agree(plan)  # a rank that starts late could read a store that rank 0 has written to
    for number, wave in enumerate(plan.waves, 1):
        cells = [cell for group in wave for cell in group.cells if cell.ranks == ranks.size]
        stuck = {cell.key: why for cell in cells if (why := blocked(cell, statuses))}
        for key, why in stuck.items():
            tell(f"{key} {why}")
        ready = [cell for cell in cells if cell.key not in stuck]
        if ready:
            tell(f"wave {number} of {len(plan.waves)}: {len(ready)} cells")
            statuses |= run_cells(ready, store, ranks, tell, cell_timeout_s)
    return statuses
