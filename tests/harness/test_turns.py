"""Several runs on one store: each cell is computed by one of them, and the others say so."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from lacuna.harness import turns
from lacuna.harness.ranks import Ranks
from lacuna.harness.run import run_cells
from lacuna.results.claim import Claim, claimed
from lacuna.results.record import Record

TASK = "task: {perplexity: {window: 64, windows: 1}}\n"
TWO = "method: [full, {topk: {rows: 8}}]\n" + TASK


@pytest.fixture
def other(store):
    """Another run: it is at the cells of keys until `leave`."""
    held = ExitStack()

    def take(*keys):
        for key in keys:
            assert not held.enter_context(claimed(store.claim(key))).holder
        return held.close

    with held:
        yield take


def test_a_cell_that_another_run_is_at_is_left_to_it(sweep, run, store, other):
    """Two shells with one sweep would each compute all of it."""
    swept = sweep(TWO)
    first, second = swept.cells
    leave = other(first.key)
    records, told = run(swept)
    assert set(records) == {second}
    assert [line for line in told if "is left to process" in line and first.key in line]
    assert told[-1].startswith("1 cell is left to other runs")
    assert not store.begun(first.key)
    leave()
    records, told = run(swept)
    assert {cell: record.status for cell, record in records.items()} == {first: "ok", second: "ok"}
    assert not any("left to" in line for line in told)
    assert not list(store.root.glob("unfinished/*/*.claim"))


def test_what_needs_a_cell_of_another_run_waits_for_it(sweep, run, store, other):
    """A second run would write errors, since the calibration that the first one makes is not there yet."""
    swept = sweep("method: [full, {loki: {keep: 0.5, basis: {tokens: 2048}}}]\n" + TASK)
    (basis,) = swept.needed
    leave = other(basis.key)
    records, told = run(swept)
    assert {cell.method.name for cell in records} == {"full"}
    assert told[-1].startswith("2 cells are left to other runs")
    leave()
    records, _ = run(swept)
    assert {record.status for record in records.values()} == {"ok"}
    assert len(records) == 3


def test_what_is_left_is_asked_for_again_at_the_end(sweep, run, store, other, monkeypatch):
    """What a run that died was at, or waited for it, would stay undone though its heir was there all the time."""
    swept = sweep(TWO)
    leave = other(swept.cells[0].key)
    monkeypatch.setattr(turns.Turns, "end", lambda *_: leave())  # the other run dies as the second cell ends
    records, told = run(swept)
    assert len(records) == 2
    assert not any("cell is left to other runs" in line for line in told)


def test_what_another_run_has_ended_since_is_not_run_again(sweep, store):
    """A run that planned while another was at a cell would compute it once more when its turn comes."""
    swept, told = sweep(TWO), []
    first, second = swept.cells
    store.put(Record(first, "ok", metrics={"perplexity": 17.0}))
    store.put(Record(second, "preempted"))
    known = {second.key: store.head(second.key)}
    statuses = run_cells(swept.cells, store, Ranks(), told.append, known=known)
    assert statuses == {first.key: "ok", second.key: "ok"}
    assert store.get(first.key).metrics == {"perplexity": 17.0}
    assert any("ended meanwhile by another run: ok" in line for line in told)


def test_what_another_run_was_made_to_leave_is_run(sweep, store):
    """A cell that was cut short, and all that needs it, would stay undone though this run is there."""
    swept = sweep(TWO)
    store.put(Record(swept.cells[0], "preempted"))
    assert set(run_cells(swept.cells, store, Ranks(), lambda _: None, known={}).values()) == {"ok"}
    assert store.get(swept.cells[0].key).status == "ok"


def test_a_job_waits_for_what_others_are_at(sweep, store, other, monkeypatch):
    """A wave that needs a calibration would begin, and do nothing, while another sweep's job is still at it."""
    swept, told = sweep(TWO), []
    leave, slept = other(swept.cells[0].key), []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            leave()

    monkeypatch.setattr(turns.time, "sleep", sleep)
    statuses = run_cells(swept.cells, store, Ranks(), told.append, wait_s=7.0)
    assert statuses == {cell.key: "ok" for cell in swept.cells}
    assert slept == [7.0, 7.0, 7.0]
    assert len([line for line in told if "this job waits" in line]) == 1


def test_a_file_system_without_locks_is_told_once(sweep, run, store, monkeypatch):
    """Who counts on it would have cells computed twice and never know; or be told at every cell."""
    monkeypatch.setattr(turns, "claimed", lambda _: ExitStackOf(Claim(sure=False)))
    records, told = run(sweep(TWO))
    assert len(records) == 2
    assert len([line for line in told if "has no locks" in line]) == 1


class ExitStackOf(ExitStack):
    """Gives a value when it is entered."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def __enter__(self):
        return self.value


@pytest.mark.slow
def test_two_shells_with_one_sweep_share_it(tmp_path):
    """Each cell would be computed twice, or one not at all."""
    (tmp_path / "s.yaml").write_text(
        "model: pocket\nmethod: [full, {topk: {rows: [8, 16, 24, 32]}}]\ntask: {perplexity: {window: 64, windows: 2}}\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "LACUNA_STORE": "store"}
    command = [sys.executable, "-m", "lacuna", "run", "s.yaml"]
    both = [subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    lines = [line for out in said for line in out.splitlines()]
    assert len([line for line in lines if "] ok " in line]) == 5
    assert len(list(tmp_path.glob("store/records/*/*.json"))) == 5
    assert not list(tmp_path.glob("store/unfinished/*/*"))
