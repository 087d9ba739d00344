"""Runs a plan in this process, or with the ranks that mpirun or Slurm started beside it."""

from __future__ import annotations

from collections.abc import Callable

from ..harness.ranks import Ranks
from ..harness.run import run_cells
from ..results.store import Store
from .plan import Plan


def run_here(
    plan: Plan, store: Store, ranks: Ranks, tell: Callable[[str], None], cell_timeout_s: float | None
) -> dict[str, str]:
    """Run, wave after wave, the cells that want as many ranks as there are; key -> status of those that ran."""
    cells = [cell for wave in plan.waves for group in wave for cell in group.cells if cell.ranks == ranks.size]
    return run_cells(cells, store, ranks, tell, cell_timeout_s, plan.heads)
