"""Sweeps that are small enough for a test, on the model that ships."""

import os
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from lacuna.harness.lm import LM
from lacuna.harness.ranks import Ranks
from lacuna.harness.run import make, run_cells
from lacuna.harness.world import World
from lacuna.jobs.plan import plan
from lacuna.jobs.sweep import read
from lacuna.models import shard
from lacuna.models.load import load_model
from lacuna.results.cell import Cell, Spec
from lacuna.results.plugins import ROOT
from lacuna.results.store import Store

sys.path.insert(0, str(Path(__file__).parent))  # the reference beside the tests


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


@pytest.fixture(scope="module")
def lm():
    """The pocket model, without a method."""
    model, tokenizer = load_model(Spec("pocket", source=str(ROOT / "models" / "zoo" / "pocket")), "float32", "cpu")
    return LM(model, tokenizer, shard.split(model, 0, 1), World(Ranks(), "cpu"))


@pytest.fixture
def under(lm):
    """A session of the pocket model under a method."""

    @contextmanager
    def bound(method="full", journal=None, **settings):
        name, args = (method, {}) if isinstance(method, str) else next(iter(method.items()))
        made = make("methods", Spec(name, _version(name), args))
        cell = Cell(Spec("pocket"), Spec(name), Spec("t"), **settings)
        with lm.under(made, cell, {}, journal) as session:
            yield session

    return bound


def _version(name):
    from lacuna.results.plugins import describe

    return describe("methods", name).version


@pytest.fixture(scope="session")
def shared():
    """Real data beside the checkout (or where LACUNA_TEST_DATA says); tests that want it are skipped without."""
    places = [Path(p) for p in (os.environ.get("LACUNA_TEST_DATA"), ROOT.parent / "shared" / "data") if p]
    found = next((p for p in places if p.is_dir()), None)
    if found is None:
        pytest.skip("no folder shared/data beside the checkout, and no LACUNA_TEST_DATA")
    return found
