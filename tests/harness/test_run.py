"""run(cell) -> Record: what happens when something goes wrong."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from lacuna.harness import provenance
from lacuna.harness import run as running
from lacuna.harness.ranks import Ranks, find_ranks
from lacuna.harness.run import run_cells
from lacuna.harness.task import Outcome
from lacuna.harness.tasks.perplexity import Perplexity
from lacuna.harness.world import World
from lacuna.jobs.say import UnheardError, say
from lacuna.results.cell import Cell

TINY = "task: {perplexity: {window: 64, windows: 1}}\n"


def break_task(monkeypatch, error):
    """Let the first perplexity cell fail and the others pass."""
    calls, own = [], Perplexity.run

    def fail_once(self, session):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return own(self, session)

    monkeypatch.setattr(Perplexity, "run", fail_once)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("planned"), "error", "RuntimeError: planned"),
        (ValueError("use a smaller window"), "error", "use a smaller window"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB"), "oom", "7 GiB"),
        (MemoryError(), "oom", "MemoryError"),
    ],
)
def test_a_failing_cell_is_a_record_and_its_group_goes_on(sweep, run, monkeypatch, error, status, reason):
    """One bad cell must not cost the others of its job, and must say why it failed."""
    break_task(monkeypatch, error)
    records, told = run(sweep("method: [full, {topk: {rows: 8}}]\n" + TINY))
    first, second = sorted(records.values(), key=lambda r: r.cell.method.name)
    assert (first.status, second.status) == (status, "ok")
    assert reason in first.reason
    assert "Error" in first.trace
    assert len(told) == 2


def test_progress_that_nobody_reads_is_no_failure_of_the_cell(sweep, run, store, monkeypatch):
    """`lacuna run SWEEP | head` would leave a cell that `failed`, which no second run would try again."""
    swept = sweep("method: full\n" + TINY)
    monkeypatch.setattr(Perplexity, "run", lambda *_: say("half of it"))
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", gone)
        with pytest.raises(UnheardError):
            run(swept)
    assert list(store.records()) == []


def test_a_method_without_gaps_is_invalid(sweep, run):
    """A budget beyond the text's length gives dense numbers; they must not be reported as sparse."""
    records, _ = run(sweep("method: [{topk: {rows: 500}}, {streaming_llm: {rows: 500}}, {topk: {keep: 1.0}}]\n" + TINY))
    status = {(c.method.name, c.method.args["rows"]): r.status for c, r in records.items()}
    assert status == {("topk", 500): "invalid", ("streaming_llm", 500): "invalid", ("topk", None): "ok"}
    assert "nothing here is sparse" in next(r.reason for r in records.values() if r.status == "invalid")


def test_numbers_that_are_none_are_invalid(sweep, run, monkeypatch):
    """NaN in a metric must be named, not averaged."""
    monkeypatch.setattr(Perplexity, "run", lambda *_: Outcome({"perplexity": float("nan")}))
    records, _ = run(sweep("method: full\n" + TINY))
    (record,) = records.values()
    assert (record.status, dict(record.metrics)) == ("invalid", {})
    assert "perplexity came out as no finite number" in record.reason


def test_a_cell_that_takes_too_long(sweep, run, monkeypatch):
    """A cell that never ends must not hold the others."""
    own = Perplexity.run

    def slow(self, session):
        if session.cell.method.name == "full":
            time.sleep(30)
        return own(self, session)

    monkeypatch.setattr(Perplexity, "run", slow)
    records, _ = run(sweep("method: [full, {topk: {rows: 8}}]\n" + TINY), cell_timeout_s=2.0)
    status = {c.method.name: r.status for c, r in records.items()}
    assert status == {"full": "timeout", "topk": "ok"}


def test_what_needs_a_failed_calibration_waits(sweep, run, store, monkeypatch):
    """Without its basis Loki cannot run; it must neither fail for ever nor run without one."""
    from lacuna.harness.tasks.pca import Pca

    monkeypatch.setattr(Pca, "run", lambda *_: 1 / 0)
    records, told = run(sweep("method: {loki: {rows: 8, d: 8}}\n" + TINY))
    assert [r.status for r in records.values()] == ["error"]
    assert any("waits for" in line for line in told)


def test_a_damaged_artifact_is_refused(sweep, run, store):
    """A basis whose bits have changed would select garbage without a word."""
    swept = sweep("method: {loki: {rows: 8, d: 8, basis: {tokens: 512, window: 128}}}\n" + TINY)
    run(swept)
    (pca,) = swept.needed
    store.artifact(pca.key).write_bytes(b"no tensors")
    run_cells(swept.cells, store, Ranks(), lambda _: None)
    record = store.get(swept.cells[0].key)
    assert record.status == "ok"  # an ok record is never replaced by a worse one
    fresh = replace(swept.cells[0], seed=1)
    run_cells([fresh], store, Ranks(), lambda _: None)
    assert "missing or damaged" in store.get(fresh.key).reason


def test_a_version_that_is_not_here_is_refused(sweep, store):
    """Results of another version of a method do not count under this one's key."""
    cell = sweep("method: full\n" + TINY).cells[0]
    old = replace(cell, method=replace(cell.method, version=99))
    assert run_cells([old], store, Ranks(), lambda _: None) == {old.key: "error"}
    assert "version" in store.get(old.key).reason


def test_cells_for_other_ranks_are_refused(sweep, store):
    """Two ranks' worth of heads on one rank would be another measurement."""
    cell = sweep("method: full\nranks: 2\n" + TINY).cells[0]
    with pytest.raises(ValueError, match=r"cells for \[2\] ranks were given to 1"):
        run_cells([cell], store, Ranks(), lambda _: None)


def test_provenance_says_where_a_number_comes_from(sweep, run):
    """A reviewer asks for revision, packages, machine and command; a record without them proves nothing."""
    records, _ = run(sweep("method: full\n" + TINY))
    told = next(iter(records.values())).provenance
    assert {
        "git_revision",
        "git_dirty",
        "source_digest",
        "packages",
        "host",
        "cpu",
        "python",
        "command",
        "ranks",
    } <= told.keys()
    assert told["packages"]["torch"].startswith(torch.__version__.split("+")[0])


@pytest.mark.parametrize("path", ["", "failing"])
def test_a_container_without_nvidia_smi_loses_no_record(tmp_path, monkeypatch, path):
    """The first cell on a GPU would end the whole run, and its result be lost, for want of a driver's number."""
    tool = tmp_path / "failing" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else str(tmp_path))
    assert provenance._driver() == ""


def test_a_rank_whose_peer_is_gone_says_so(monkeypatch):
    """Where rank 0 cannot write its records, all other ranks would end in tracebacks of sockets."""

    def gone(*_, **__):
        raise RuntimeError("[pair.cc:553] Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "all_gather_object", gone)
    with pytest.raises(ConnectionError, match="rank 1 has lost another rank"):
        World(Ranks(1, 2), "cpu").gather("here")


def test_a_killed_run_goes_on_where_it_was(sweep, run, store, tmp_path):
    """Kill -9 loses at most the cell in progress; the next run does only what is missing."""
    swept = sweep(f"method: full\nseed: [0, 1, 2, 3, 4, 5]\n{TINY}")
    command = [sys.executable, "-m", "lacuna", "run", str(tmp_path / "s.yaml"), "--store", str(store.root)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    seen = 0
    for line in first.stdout:
        seen += " ok " in line
        if seen == 2:
            first.send_signal(signal.SIGKILL)
            break
    first.wait()
    _, told = run(swept)
    assert 3 <= sum(" ok " in line for line in told) <= 4
    records, told = run(swept)
    assert (len(records), told) == (6, [])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks()),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Ranks(1, 2, 1, "torchrun", "env://")),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7",
             "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"},
            Ranks(1, 2, 0, "slurm", "tcp://10.0.0.1:20112"),
        ),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, Ranks()),
    ],
)  # fmt: skip
def test_ranks_come_from_the_launcher(environment, expected):
    """A process that mistakes its launcher would run every cell alone, or wait for peers that never come.

    The last case is a batch script: Slurm's variables are there, but no srun started several tasks.
    """
    assert find_ranks(environment) == expected


def test_cells_survive_the_way_to_other_ranks(sweep):
    """Rank 0 sends its cells to the others; one that came out different would desynchronise them."""
    cell = sweep("method: {loki: {rows: 8, d: 8}}\n" + TINY).cells[0]
    assert Cell.from_json(cell.to_json()) == cell
    assert running.make("methods", cell.method).rows == 8


def test_a_model_that_cannot_be_loaded_is_tried_once(sweep, run, monkeypatch):
    """Thirty cells must not each wait for the same load to fail; all of them must say why."""
    loads = []

    def fail(*_):
        loads.append(1)
        raise ValueError("no such weights")

    monkeypatch.setattr(running, "load_model", fail)
    records, _ = run(sweep("method: [full, {topk: {rows: [8, 9]}}]\n" + TINY))
    assert [r.reason for r in records.values()] == ["no such weights"] * 3
    assert len(loads) == 1
