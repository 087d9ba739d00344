"""A plan without a sweep file, and the stand-in for the harness."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from lacuna.results.cell import Cell, Spec
from lacuna.results.store import Store

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Group:
    """As jobs.plan's."""

    cells: tuple


@dataclass(frozen=True)
class Plan:
    """As jobs.plan's."""

    waves: tuple


@pytest.fixture
def make_cells():
    """cells(n, ranks=.., first=.., ...): n different cells."""

    def cells(n, first=0, method="loki", **fields):
        return tuple(
            Cell(Spec("pocket"), Spec(method, args={"k": first + i}), Spec("prose"), **fields) for i in range(n)
        )

    return cells


@pytest.fixture
def make_plan():
    """plan([[cells, cells], [cells]]): waves of groups."""
    return lambda waves: Plan(tuple(tuple(Group(tuple(g)) for g in w) for w in waves))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """The stand-in's name; jobs inherit these variables."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "computed"))
    monkeypatch.setenv("FAKE_CELL_S", "0")
    return "fake_runner:run"


@pytest.fixture
def computed(tmp_path):
    """How often each key was computed to its end."""
    log = tmp_path / "computed"
    return lambda: Counter(log.read_text().split()) if log.exists() else Counter()


@pytest.fixture
def make_site(tmp_path):
    """site(text): the path of a site's file."""

    def site(text):
        path = tmp_path / "here.yaml"
        path.write_text(text)
        return str(path)

    return site
