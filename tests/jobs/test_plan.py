"""What is left to do is found, in an order that works."""

import itertools
import time
from pathlib import Path

import pytest

from lacuna.jobs.plan import blocked, plan
from lacuna.jobs.sweep import read
from lacuna.results.record import Record
from lacuna.results.store import Store

TEXT = """
model: pocket
method: [full, {loki: {k: [2, 3], basis: {rotary: [pre, post]}}}]
task: needle
dtype: [float32, bfloat16]
"""


@pytest.fixture
def swept(root):
    """A sweep of two plain cells, eight of Loki and four calibrations, and an empty store."""
    Path("s.yaml").write_text(TEXT, encoding="utf-8")
    store = Store("store")
    return read(Path("s.yaml"), store), store


def names(wave):
    return [[cell.task.name for cell in group.cells] for group in wave]


def test_calibration_comes_first_and_groups_share_a_load(swept):
    """A cell would start before its artifact is there, or a model be loaded for each cell."""
    found = plan(*swept)
    assert [names(wave) for wave in found.waves] == [[["pca"] * 2] * 2, [["needle"] * 5] * 2]
    assert all(len({cell.group for cell in group.cells}) == 1 for wave in found.waves for group in wave)
    assert sorted(c.key for c in found.todo) == sorted(c.key for w in found.waves for g in w for c in g.cells)


def test_one_wave_where_nothing_is_needed(root):
    """An empty wave would be submitted."""
    Path("s.yaml").write_text("model: pocket\nmethod: full\ntask: needle\n", encoding="utf-8")
    assert [names(w) for w in plan(read(Path("s.yaml"), Path("store")), Store("store")).waves] == [[["needle"]]]


def test_what_is_done_is_not_run_again(swept):
    """A second run would compute everything again."""
    sweep, store = swept
    for cell in (*sweep.needed, *sweep.cells):
        store.put(Record(cell, "ok"))
    found = plan(sweep, store)
    assert found.waves == ()
    assert found.counts() == {"ok": 14}


def test_an_artifact_that_nobody_waits_for_is_not_made(swept):
    """A calibration would run although every cell that takes it is done."""
    sweep, store = swept
    for cell in sweep.cells:
        store.put(Record(cell, "ok"))
    assert plan(sweep, store).counts() == {"ok": 10, "idle": 4}


@pytest.mark.parametrize(("retry", "runs"), [((), 0), (("preempted",), 1), (("error", "preempted"), 2)])
def test_only_what_is_to_be_retried_is_retried(swept, retry, runs):
    """A failure would come again at each run, or a preempted cell never end."""
    sweep, store = swept
    for cell, status in zip(sweep.cells, ("error", "preempted", *["ok"] * 8), strict=True):
        store.put(Record(cell, status))
    assert len(plan(sweep, store, retry).todo) == runs


def test_a_cell_waits_for_a_failed_one_and_says_so(swept):
    """A cell would run without its artifact, or be missing without a word."""
    sweep, store = swept
    failed = sweep.needed[0]
    store.put(Record(failed, "error", "no memory"))
    found = plan(sweep, store)
    assert set(found.waiting.values()) == {f"waits for {failed.key} which is error"}
    assert set(found.waiting) == {c.key for c in sweep.cells if ("basis", failed.key) in c.needs}
    assert not set(found.waiting) & {c.key for c in found.todo}
    assert found.counts() == {"error": 1, "todo": 11, "waits": 2}
    assert plan(sweep, store, ("error",)).counts() == {"todo": 14}


def test_blocked_by_what_just_failed(swept):
    """A wave would start cells whose artifact the wave before it did not make."""
    sweep, _ = swept
    cell = next(c for c in sweep.cells if c.needs)
    key = cell.needs[0][1]
    assert blocked(cell, {key: "ok"}) is None
    assert blocked(cell, {key: "oom"}) == f"waits for {key} which is oom"


def test_unknown_status_to_retry(swept):
    """A misspelt --retry would retry nothing."""
    with pytest.raises(ValueError, match="unknown status 'eror' to retry: did you mean 'error'"):
        plan(*swept, ("eror",))


def test_explained(swept):
    """The plan that is printed would not be the plan that is run."""
    assert plan(*swept).explain().splitlines() == [
        "s: 14 cells: 14 todo",
        "wave 1: 4 cells",
        "  pocket (float32, cpu, 1 rank): 2 cells",
        "  pocket (bfloat16, cpu, 1 rank): 2 cells",
        "wave 2: 10 cells",
        "  pocket (float32, cpu, 1 rank): 5 cells",
        "  pocket (bfloat16, cpu, 1 rank): 5 cells",
    ]


def test_json_has_every_cell_once(swept):
    """A program could not tell from the plan which cells are to run."""
    found = plan(*swept).to_json()
    assert len({cell["key"] for cell in found["cells"]}) == len(found["cells"]) == 14
    assert {cell["state"] for cell in found["cells"]} == {"todo"}
    grouped = list(itertools.chain(*(group["cells"] for wave in found["waves"] for group in wave)))
    assert sorted(grouped) == sorted(cell["key"] for cell in found["cells"])


def test_ten_thousand_cells_are_planned_in_seconds(root, pace):
    """A large sweep could not be looked at."""
    numbers = list(range(1, 11))
    Path("s.yaml").write_text(
        f"model: pocket\nmethod: {{loki: {{k: {numbers}, d: {numbers}}}}}\ntask: {{needle: {{length: {numbers}}}}}\nseed: {numbers}\n"
    )
    start = time.process_time()
    found = plan(read(Path("s.yaml"), Store("store")), Store("store"))
    assert len(found.cells) == 10_010
    assert time.process_time() - start < 2 * pace
