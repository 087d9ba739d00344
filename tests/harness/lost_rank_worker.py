"""Run by test_ranks.py under mpirun: the last rank alone fails in the first cell, while the others wait for it."""

import sys
from functools import partial
from pathlib import Path

from lacuna.harness import run as running
from lacuna.harness.ranks import find_ranks
from lacuna.harness.tasks.perplexity import Perplexity
from lacuna.jobs.plan import plan
from lacuna.jobs.sweep import read
from lacuna.results.store import Store


def main(sweep: str, root: str) -> None:
    ranks, own, calls = find_ranks(), Perplexity.run, []

    def fail_alone(self, session):
        calls.append(1)
        if len(calls) == 1 and ranks.rank == ranks.size - 1:
            raise RuntimeError("planned")
        return own(self, session)

    Perplexity.run = fail_alone
    running.World = partial(running.World, patience_s=5.0)
    store = Store(root)
    cells = [c for wave in plan(read(Path(sweep), store), store).waves for group in wave for c in group.cells]
    running.run_cells(cells, store, ranks, print)


if __name__ == "__main__":
    main(*sys.argv[1:])
