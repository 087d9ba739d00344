"""Sweeps that are small enough for a test, on the model that ships."""

import textwrap

import pytest

from lacuna.harness.ranks import Ranks
from lacuna.harness.run import run_cells
from lacuna.jobs.plan import plan
from lacuna.jobs.sweep import read
from lacuna.results.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def sweep(tmp_path, store):
    """Write a sweep file and read it."""

    def make(text, name="s"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"name: {name}\nmodel: pocket\n" + textwrap.dedent(text))
        return read(path, store)

    return make


@pytest.fixture
def run(store):
    """Run a sweep here, in one rank; key -> record."""

    def go(swept, **options):
        told = []
        cells = [c for wave in plan(swept, store).waves for group in wave for c in group.cells]
        run_cells(cells, store, Ranks(), told.append, **options)
        return {r.cell: r for r in store.records()}, told

    return go
