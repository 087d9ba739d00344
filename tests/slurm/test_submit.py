"""Submission without Slurm: what would be sent, what is left out, what comes back after an interruption."""

import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lacuna.jobs.batch import batches
from lacuna.jobs.site import read_site
from lacuna.jobs.submit import RUNNER, GroupJob, dry_run, submit
from lacuna.results.claim import claimed
from lacuna.results.record import Record

GOLDEN = Path(__file__).with_name("golden.sbatch")
SITE = "executor: slurm\nlauncher: pmix\nmax_array: 3\ncells_per_job: 2\n"
LOCAL = "executor: local\ntime_min: 5\n"


def job_of(cells, store, runner=RUNNER, asked="2020-01-01T00:00:00+00:00"):
    return GroupJob(tuple(c.to_json() for c in cells), str(store.root), None, asked, runner)


def test_sbatch_text_is_the_golden_one(make_plan, make_cells, store, make_site):
    """A change in what is asked of Slurm (ranks, GPUs, signal, dependency, srun's words) would go unseen."""
    gpu = "executor: slurm\nlauncher: torch\npartition: gpu\naccount: a1\ntime_min: 240\nsignal_s: 120\n"
    gpu += "cpus_per_rank: 12\ngpus_per_rank: 1\nmem_gb: 240\nranks_per_node: 2\narray_parallelism: 8\nmax_array: 100\n"
    gpu += "cells_per_job: 4\nsetup: [module load cuda]\nenv: {NCCL_DEBUG: WARN}\n"
    plan = make_plan([[make_cells(1, ranks=4, device="cuda")], [make_cells(9, 1, ranks=4, device="cuda")]])
    text = dry_run(plan, "golden", store, make_site(gpu)).replace(str(store.root), "STORE")
    text = re.sub(r"\S+ -u -m submitit", "PYTHON -u -m submitit", text)
    assert text == GOLDEN.read_text()


def test_dry_run_needs_no_slurm(make_plan, make_cells, store, make_site, monkeypatch):
    """A laptop could not show what would be submitted."""
    monkeypatch.setenv("PATH", "")
    assert "#SBATCH --array=0-1" in dry_run(make_plan([[make_cells(4)]]), "s", store, make_site(SITE))


def test_submitting_imports_no_torch():
    """`lacuna submit` would need torch on the login node, and seconds to start."""
    code = "import sys, lacuna.jobs.submit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_arrays_are_cut_to_what_slurm_takes(make_plan, make_cells, store, make_site):
    """Slurm would refuse an array longer than MaxArraySize, and with it the sweep."""
    found = batches(make_plan([[make_cells(14)]]), store, read_site(make_site(SITE)))
    assert [len(b.jobs) for b in found] == [3, 3, 1]
    assert all(len(j) == 2 for b in found for j in b.jobs)


def test_arrays_do_not_mix_shapes(make_plan, make_cells, store, make_site):
    """A job of one rank would be started with two, or the other way round."""
    plan = make_plan([[make_cells(2, ranks=1), make_cells(2, ranks=2), make_cells(2, first=5, ranks=1)]])
    found = batches(plan, store, read_site(make_site(SITE)))
    assert sorted((b.ranks, len(b.jobs)) for b in found) == [(1, 2), (2, 1)]


def test_what_is_ok_is_not_submitted(make_plan, make_cells, store, make_site):
    """A second submit would compute everything again."""
    ok, failed, missing = make_cells(3)
    store.put(Record(ok, "ok"))
    store.put(Record(failed, "error", "reason"))
    (batch,) = batches(make_plan([[(ok, failed, missing)]]), store, read_site(make_site(SITE)))
    assert batch.jobs == ((failed, missing),)


def test_a_later_wave_waits_for_the_last_that_has_jobs(make_plan, make_cells, store, make_site):
    """Cells would start before the calibration they need, or wait for a wave that has nothing to do."""
    first, second = make_cells(1), make_cells(1, first=1)
    plan = make_plan([[first], [second]])
    assert "--dependency=afterany:WAVE1" in dry_run(plan, "s", store, make_site(SITE))
    store.put(Record(first[0], "ok"))
    assert "--dependency" not in dry_run(plan, "s", store, make_site(SITE))


def test_a_job_that_comes_back_does_only_what_is_left(make_cells, store, runner, computed):
    """A preempted job would lose finished cells, compute them again, or leave no trace of what it was doing."""
    done, broken, old, running, waiting = make_cells(5)
    store.put(Record(done, "ok"))
    store.put(Record(broken, "error", "reason", started="2025-01-01T00:00:05+00:00"))
    store.put(Record(old, "error", "an earlier try", started="2024-01-01T00:00:00+00:00"))
    job = job_of((done, broken, running, old, waiting), store, runner, asked="2025-01-01T00:00:00+00:00")
    again = job.checkpoint().function
    assert store.head(running.key).status == "preempted"
    assert store.head(waiting.key) is None
    again()
    assert computed() == {c.key: 1 for c in (running, old, waiting)}
    assert store.head(broken.key).status == "error"


def test_checkpoint_leaves_the_cell_of_another_run_alone(make_cells, store):
    """A cell that a shell is computing would be called preempted, and that of the job be forgotten."""
    own, other = make_cells(2)
    store.start(own.key)
    store.start(other.key)  # the last that wrote
    with claimed(store.claim(other.key)), claimed(store.claim(own.key)):
        store.claim(other.key).write_text("process 1 on another host\n")
        job_of([own, other], store).checkpoint()
    assert store.get(own.key).status == "preempted"
    assert store.head(other.key) is None


def test_checkpoint_after_the_last_cell_leaves_the_store_alone(make_cells, store):
    """A job told to stop as it ends would mark a finished cell as preempted."""
    (cell,) = make_cells(1)
    store.put(Record(cell, "ok"))
    job_of([cell], store).checkpoint()
    assert store.head(cell.key).status == "ok"


def test_rank_1_does_not_blame_the_cell_when_rank_0_is_preempted(make_cells, store, runner, monkeypatch):
    """A preempted cell would be recorded as failed by the rank that is left behind, and never be run again."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_PROCID", "1")
    (cell,) = make_cells(1)
    with pytest.raises(ZeroDivisionError):
        job_of((cell,), store, "fake_runner:break_off")()
    assert store.head(cell.key) is None


def test_a_job_that_breaks_off_says_why_in_the_store(make_cells, store, runner, monkeypatch):
    """A lost rank, or a node without a package, would leave a cell that is missing for no visible reason."""
    monkeypatch.setattr("lacuna.jobs.submit.KILL_SPREAD_S", 0)
    first, second = make_cells(2)
    with pytest.raises(ModuleNotFoundError):
        job_of((first, second), store, "no_such_module:run")()
    assert store.head(first.key) is None
    with pytest.raises(ZeroDivisionError):
        job_of((first, second), store, "fake_runner:break_off")()
    assert store.head(first.key).reason == "its job broke off: rank 1 is gone"
    assert "ZeroDivisionError" in store.get(first.key).trace
    assert store.head(second.key) is None


def test_a_job_that_lost_a_rank_is_queued_again_for_its_other_cells(make_cells, store, runner, computed, monkeypatch):
    """Every cell behind one that takes too much memory would wait until somebody submits the sweep again."""
    monkeypatch.setattr("lacuna.jobs.submit.KILL_SPREAD_S", 0)
    called = []
    monkeypatch.setattr("lacuna.jobs.submit._requeue", lambda: called.append(1))
    alone, first, second = make_cells(3)
    with pytest.raises(ConnectionError):
        job_of((alone,), store, "fake_runner:lose_rank")()
    assert (store.head(alone.key).status, called) == ("error", [])  # nothing was left to do
    with pytest.raises(ConnectionError):
        job_of((first, second), store, "fake_runner:lose_rank")()
    assert (store.head(first.key).status, store.head(second.key), called) == ("error", None, [1])
    with pytest.raises(ZeroDivisionError):  # before any cell was begun: the next try would break off as well
        job_of((second, alone), store, "fake_runner:break_off")()
    assert called == [1]


def test_a_cell_that_killed_its_job_is_run_last(make_cells, store, runner, computed):
    """A cell that takes the job with it, and leaves no record, would be the first of each next try, and the only one."""
    cells = make_cells(3)
    store.start(cells[0].key)
    job_of(cells, store, runner)()
    assert list(computed()) == [cells[1].key, cells[2].key, cells[0].key]


def test_a_preempted_job_names_the_cell_that_it_was_at(make_cells, store):
    """A cell that comes last because it was begun before would be recorded in the name of the first."""
    cells = make_cells(3)
    store.start(cells[0].key)
    time.sleep(0.02)  # file systems tell times apart that are this far from each other
    store.start(cells[2].key)
    job_of(cells, store).checkpoint()
    assert [store.head(c.key) is not None for c in cells] == [False, False, True]


def test_cells_whose_need_failed_wait_without_a_record(make_cells, store, runner, computed, capsys):
    """A cell would be tried without its basis; or its failure would stand after the basis is mended."""
    failed, fine = make_cells(2)
    store.put(Record(failed, "error", "reason", started="2025-01-01T00:00:00+00:00"))
    store.put(Record(fine, "ok"))
    needs = [(("basis", failed.key),), (("basis", "0" * 20),), (("basis", fine.key),)]
    cells = [make_cells(1, first=9, needs=n)[0] for n in needs]
    job_of(cells, store, runner)()
    assert computed() == {cells[2].key: 1}
    assert [store.head(c.key) for c in cells[:2]] == [None, None]
    assert f"{cells[0].key} waits for {failed.key}" in capsys.readouterr().out


def test_job_survives_pickling(make_cells, store):
    """The compute node would not get the job that was submitted."""
    job = job_of(make_cells(2, needs=(("basis", "0" * 20),)), store)
    assert pickle.loads(pickle.dumps(job)) == job


def test_local_runs_both_ranks_here(make_plan, make_cells, store, make_site, runner, computed, capsys):
    """Without Slurm, a sweep of two ranks would run on one, or not at all, or a failing cell would end it."""
    plan = make_plan([[make_cells(2, method="broken", ranks=2)], [make_cells(3, ranks=2)]])
    ids = submit(plan, "s", store, make_site(LOCAL), runner)
    heads = [store.head(c.key).status for w in plan.waves for g in w for c in g.cells]
    assert heads == ["error", "error", "ok", "ok", "ok"]
    assert store.get(plan.waves[1][0].cells[0].key).metrics["ranks"] == 2
    assert len(ids) == 2
    assert set(computed().values()) == {1}
    assert "lacuna status s" in capsys.readouterr().out


def test_local_says_when_a_job_broke_off(make_plan, make_cells, store, make_site, capsys):
    """A job that dies before its first cell (a wrong import) would look like success."""
    submit(make_plan([[make_cells(1)]]), "s", store, make_site(LOCAL), "no_such_module:run")
    assert "broke off: ModuleNotFoundError" in capsys.readouterr().out


def test_debug_runs_in_this_process(make_plan, make_cells, store, make_site, runner, computed):
    """Nobody could set a breakpoint in a cell."""
    submit(make_plan([[make_cells(2)]]), "s", store, make_site("executor: debug\n"), runner)
    assert sum(computed().values()) == 2


def test_debug_refuses_several_ranks(make_plan, make_cells, store, make_site, runner):
    """Cells of two ranks would run on one and be recorded as two."""
    with pytest.raises(ValueError, match="several ranks"):
        submit(make_plan([[make_cells(1, ranks=2)]]), "s", store, make_site("executor: debug\n"), runner)


def test_nothing_missing_submits_nothing(make_plan, make_cells, store, make_site, capsys):
    """An empty array would be an error of Slurm's."""
    (cell,) = make_cells(1)
    store.put(Record(cell, "ok"))
    assert submit(make_plan([[[cell]]]), "s", store, make_site(LOCAL)) == []
    assert "nothing is missing" in capsys.readouterr().out


def test_no_slurm_is_one_sentence_with_the_mend(make_plan, make_cells, store, make_site, monkeypatch):
    """A user on a laptop would get submitit's traceback."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"no sbatch; .*--site local"):
        submit(make_plan([[make_cells(1)]]), "s", store, make_site(SITE))


def test_gpu_cells_on_a_site_without_gpus_are_refused(make_plan, make_cells, store, make_site):
    """Every job of the sweep would wait in the queue and then fail."""
    with pytest.raises(ValueError, match="gpus_per_rank: 0"):
        dry_run(make_plan([[make_cells(1, device="cuda")]]), "s", store, make_site(SITE))
