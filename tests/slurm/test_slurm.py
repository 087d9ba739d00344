"""Submission on a real Slurm: ranks, waves, cancelling, preemption, requeue, the end of time.

eval "$(tests/slurm/up.sh /tmp/onebox)" && pytest -m slurm; tests/slurm/down.sh /tmp/onebox
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lacuna.jobs.submit import submit
from lacuna.results.plugins import ROOT
from lacuna.results.store import Store

pytestmark = pytest.mark.slurm
ONEBOX = "executor: slurm\nlauncher: pmix\npartition: low\ntime_min: 5\nsignal_s: 30\ncells_per_job: 3\n"


def call(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def why_not():
    """What keeps these tests from running here; they never submit to a cluster that is not their own."""
    if shutil.which("sinfo") is None:
        return "there is no Slurm on this machine (tests/slurm/install.sh installs one, as root)"
    if "SLURM_CONF" not in os.environ:
        return 'SLURM_CONF is not set: eval "$(tests/slurm/up.sh /tmp/onebox)"'
    try:
        return "" if "low" in call("sinfo", "-h", "-o", "%R") else "this Slurm is not the one of tests/slurm/up.sh"
    except (subprocess.SubprocessError, OSError) as error:
        return f"Slurm does not answer: {error}"


def last_lines(log, lines=40):
    return "\n".join([f"--- {log}", *log.read_text(errors="replace").splitlines()[-lines:]])


@pytest.fixture(autouse=True)
def cluster(tmp_path):
    """Skip with the reason; where LACUNA_REQUIRE_SLURM is set, a skip would be a hole in the net.

    pytest shows what is printed here of a test that fails: what Slurm and the jobs had said until then.
    """
    if reason := why_not():
        (pytest.fail if os.environ.get("LACUNA_REQUIRE_SLURM") else pytest.skip)(reason)
    yield
    print(call("squeue", "-r", "-t", "all", "-o", "%i %j %T %r %N %S %M"))
    logs = [*Path(os.environ["SLURM_CONF"]).parents[1].glob("log/slurm*.log"), *tmp_path.rglob("*_log.*")]
    print(*map(last_lines, logs), sep="\n")
    subprocess.run(["scancel", "--user", str(os.getuid())], check=False)


def until(happened, what, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if seen := happened():
            return seen
        time.sleep(0.2)
    pytest.fail(f"after {seconds} s there is still not: {what}")


def until_queue_is_empty(seconds=240):
    until(lambda: not call("squeue", "-h"), "an empty queue", seconds)


def state(job):
    return call("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T")


def leave_folders_of_pmix(job):
    """As a step does that is killed at the wrong moment: the next step of this number could not start beside them."""
    root = Path(os.environ["SLURM_CONF"]).parents[1]
    for node in ("n1", "n2"):
        (root / f"tmp/{node}/spmix_appdir_{os.getuid()}_{job}.0").mkdir(exist_ok=True)
        (root / f"spool/{node}/stepd.slurm.pmix.{job}.0").touch()


def statuses(store, cells):
    return [h.status if (h := store.head(c.key)) else "missing" for c in cells]


def test_two_ranks_a_job_wave_after_wave(make_plan, make_cells, store, make_site, runner):
    """Ranks would not find each other, a wave would overtake the one it needs, or a failed cell would hold the rest."""
    first = make_cells(2, ranks=2, method="broken")
    second = make_cells(8, ranks=2)
    ids = submit(make_plan([[first], [second]]), "waves", store, make_site(ONEBOX), runner)
    until_queue_is_empty()
    assert len(ids) == 4
    assert statuses(store, first + second) == ["error"] * 2 + ["ok"] * 8
    records = [store.get(c.key) for c in second]
    assert {r.metrics["ranks"] for r in records} == {2}
    assert min(r.started for r in records) > max(store.get(c.key).started for c in first)


def test_cancel_preempt_requeue_end_complete(make_plan, make_cells, store, make_site, runner, computed, monkeypatch):
    """A cluster's daily life would lose finished cells, compute them twice, or leave a hole in the store."""
    monkeypatch.setenv("FAKE_CELL_S", "5")
    cells = make_cells(9, ranks=2)
    plan, site = make_plan([[cells]]), make_site(ONEBOX + "array_parallelism: 2\n")
    cancelled, preempted, requeued = submit(plan, "life", store, site, runner)
    until(lambda: statuses(store, cells)[3] == "ok", "a first cell of the job that is to be preempted")
    call("scancel", cancelled)

    node = call("squeue", "-h", "-r", "-j", preempted, "-o", "%N")
    call("sbatch", "-p", "main", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 8")
    key = until(lambda: next((c.key for c in cells if statuses(store, [c]) == ["preempted"]), ""), "a preempted cell")
    assert key in [c.key for c in cells[4:6]]
    assert "queued again" in store.head(key).reason

    until(lambda: "ok" in statuses(store, cells[6:]), "a first cell of the job that is to be requeued")
    call("scontrol", "requeue", requeued)
    until(lambda: state(requeued) == "PENDING", "a requeued job whose killed step is gone")
    leave_folders_of_pmix(call("squeue", "-h", "-j", requeued, "-o", "%A"))
    until_queue_is_empty()
    assert state(cancelled) == "CANCELLED"
    assert statuses(store, cells[3:]) == ["ok"] * 6
    assert "missing" in statuses(store, cells[:3])

    monkeypatch.setenv("FAKE_CELL_S", "0")
    submit(plan, "life", store, site, runner)
    until_queue_is_empty()
    assert statuses(store, cells) == ["ok"] * 9
    assert computed() == {c.key: 1 for c in cells}


def test_a_job_goes_on_after_the_end_of_its_time(
    make_plan, make_cells, store, make_site, runner, computed, monkeypatch
):
    """A sweep longer than a partition's time limit would never end.

    Slurm looks at limits every 30 s and warns once, up to 30 s too soon: here 30 to 60 s after the start, when the job
    has long been able to hear it and has 90 s of work.
    """
    monkeypatch.setenv("FAKE_CELL_S", "10")
    cells = make_cells(9, ranks=2)
    site = make_site(
        ONEBOX.replace("time_min: 5", "time_min: 2").replace("signal_s: 30", "signal_s: 60").replace("job: 3", "job: 9")
    )
    (job,) = submit(make_plan([[cells]]), "long", store, site, runner)
    log = store.logs() / job / f"{job}_0_log.err"
    until(lambda: log.exists() and "this job is timed-out" in log.read_text(), "a job at the end of its time")
    assert statuses(store, cells) != ["ok"] * 9
    until_queue_is_empty(400)
    assert statuses(store, cells) == ["ok"] * 9
    assert computed() == {c.key: 1 for c in cells}


def test_a_rank_that_is_killed_costs_only_its_cell(make_plan, make_cells, store, make_site, runner):
    """A cell that takes too much memory would keep those behind it waiting until the sweep is submitted again."""
    (greedy,), others = make_cells(1, method="greedy", ranks=2), make_cells(2, ranks=2)
    site = make_site(ONEBOX.replace("pmix", "torch"))
    submit(make_plan([[(greedy, *others)]]), "oom", store, site, "fake_runner:run_out")
    until_queue_is_empty()
    assert statuses(store, [greedy, *others]) == ["error", "ok", "ok"]
    assert "broke off" in store.head(greedy.key).reason


@pytest.mark.parametrize(("launcher", "said"), [("pmix", "mpi"), ("torch", "slurm")])
def test_ranks_meet(make_plan, make_cells, store, make_site, runner, launcher, said):
    """Without MPI, or with it, the ranks of a job would not find each other as the harness looks for them."""
    plan, site = make_plan([[make_cells(1, ranks=2)]]), make_site(ONEBOX.replace("pmix", launcher))
    (job,) = submit(plan, "meet", store, site, "fake_runner:meet")
    until_queue_is_empty()
    assert f"{said}: sum over 2 ranks is 2" in (store.logs() / job / f"{job}_0_log.out").read_text()


def test_generic_gpus_are_asked_for(make_plan, make_cells, store, make_site, runner):
    """A rank would not see the GPUs of its job."""
    (cell,) = make_cells(1, ranks=2, device="cuda")
    submit(make_plan([[[cell]]]), "gpus", store, make_site(ONEBOX + "gpus_per_rank: 1\n"), runner)
    until_queue_is_empty()
    assert store.get(cell.key).provenance["gpus"] == "0,1"


def test_a_refusal_of_slurms_is_one_sentence(make_plan, make_cells, store, make_site, runner):
    """A wrong partition would be a traceback of submitit's."""
    with pytest.raises(ValueError, match=r"Slurm refuses wave 1 .*invalid partition"):
        submit(make_plan([[make_cells(1)]]), "no", store, make_site(ONEBOX.replace("low", "nowhere")), runner)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_sweep_on_slurm(tmp_path, monkeypatch):
    """The suite's main job, one sweep file on a cluster, would not end in a complete store when jobs are lost on the way."""
    monkeypatch.setenv("LACUNA_STORE", str(tmp_path / "store"))
    sweep, store = str(ROOT / "jobs/sweeps/demo.yaml"), Store(tmp_path / "store")

    def lacuna(*arguments):
        command = [sys.executable, "-m", "lacuna", *arguments]
        return subprocess.run(command, check=True, timeout=300, capture_output=True, text=True).stdout

    def found():
        return Counter(r.status for r in store.records())

    def running():
        return call("squeue", "-h", "-r", "-t", "R", "-n", "lacuna-demo", "-o", "%i %N").splitlines()

    lacuna("submit", sweep, "--site", "onebox")
    until(lambda: found()["ok"] > 1 and len(running()) > 1, "two jobs of the second wave", 600)
    (cancelled, _), (_, node) = (line.split() for line in running())
    call("scancel", cancelled)
    call("sbatch", "-p", "main", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    until(lambda: found()["preempted"], "a preempted cell")
    until_queue_is_empty(1500)
    assert set(found()) == {"ok"}

    assert "wave 1" in lacuna("submit", sweep, "--site", "onebox")  # what was cancelled
    until_queue_is_empty(1500)
    counts = json.loads(lacuna("plan", sweep, "--json"))["counts"]
    assert counts == {"ok": found()["ok"]}
    assert "nothing is missing" in lacuna("submit", sweep, "--site", "onebox")
