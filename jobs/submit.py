"""The one door to submitit: a plan becomes job arrays, wave after wave; `dry_run` shows their text."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitit import JobEnvironment, LocalExecutor, SlurmExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError, environment_variables

from ..results.cell import Cell
from ..results.record import Record, Status
from ..results.store import Store
from . import local
from .batch import Batch, batches
from .left import at_work, left
from .say import hush, say
from .site import Site, read_site

if TYPE_CHECKING:
    from .plan import Plan

# submitit counts each preemption of a job of ten minutes or less as a time-out, so its count cannot tell a busy
# partition from a cell that never ends; the cell's own time-out ends the latter
MAX_REQUEUES = 1000
# who stops a job kills its ranks within this time of each other: rank 0 must not take that for a failure of the cell
KILL_SPREAD_S = 3.0
# how often a job asks for a cell that another run is at: jobs of a later wave count on it when this one ends
ASK_AGAIN_S = 30.0
RUNNER = f"{__name__}:run_on_ranks"


@dataclass(frozen=True)
class GroupJob:
    """What one job does: cells that share a load of the model. submitit pickles it by reference.

    Attributes:
        cells: cells as plain JSON.
        store: absolute path of the store.
        cell_timeout_s: when a cell is a time-out; None never.
        asked: when it was submitted (UTC, ISO 8601); a failure recorded earlier is tried again, a later one is not.
        runner: `module:function` that takes (cells, store, cell_timeout_s) and gives {key: status}.
    """

    cells: tuple[Mapping[str, Any], ...]
    store: str
    cell_timeout_s: float | None
    asked: str
    runner: str = RUNNER

    def __call__(self) -> dict[str, str]:
        """Run what is left of the cells; each rank of the job calls this, and rank 0's list counts."""
        module, _, function = self.runner.partition(":")
        run = getattr(importlib.import_module(module), function)
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":
            os.environ.update(local_rendezvous(JobEnvironment()))
        store = Store(self.store)
        before = {cell.key: store.begun(cell.key) for cell in self._left(store, hush)}
        try:
            statuses: dict[str, str] = run(self._left(store, say), store, self.cell_timeout_s)
        except Exception as error:
            # a cell's own failure is the runner's to record; this is a lost rank, or a node that lacks something
            if _rank() != 0:
                raise  # it sees rank 0 go when the job is preempted, which is not the cell's fault
            time.sleep(KILL_SPREAD_S)
            why = f"its job broke off: {str(error) or type(error).__name__}"
            broken = self._note(store, "error", why, traceback.format_exc())
            if (
                broken is not None
                and store.begun(broken.key) != before.get(broken.key, 0.0)
                and self._left(store, hush)
            ):
                _requeue()  # those behind a cell that lost a rank need not wait for the next submit
            raise
        return statuses

    def checkpoint(self) -> DelayedSubmission:
        """Say in the store which cell was cut short, and ask for the same job again.

        submitit calls this on rank 0 when the job is about to be preempted or its time is nearly over.
        """
        reason = "its job lost the node, or the job's time was over; the job is queued again"
        self._note(Store(self.store), "preempted", reason, "")
        return DelayedSubmission(self)

    def _note(self, store: Store, status: Status, reason: str, trace: str) -> Cell | None:
        """Record how the cell in progress ended."""
        cell = at_work(self._left(store, hush), store)
        if cell is not None:
            store.put(Record(cell, status, reason.splitlines()[0], trace, started=_now()))
        return cell

    def _left(self, store: Store, tell: Callable[[str], None]) -> list[Cell]:
        """A job that comes back asks again, whether it was warned (`checkpoint`) or killed."""
        return left([Cell.from_json(c) for c in self.cells], store, self.asked, tell)


def _rank() -> int:
    return JobEnvironment().global_rank if "SUBMITIT_EXECUTOR" in os.environ else 0


def _requeue() -> None:
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        command = ["scontrol", "requeue", JobEnvironment().job_id]
        subprocess.run(command, check=False, timeout=60)  # noqa: S603 - Slurm's own, wherever it is installed


def run_on_ranks(cells: Sequence[Cell], store: Store, cell_timeout_s: float | None) -> dict[str, str]:
    """Run cells with the ranks that this process finds itself among, and wait for those that another run is at."""
    known = store.heads(cell.key for cell in cells)  # before imports, which take a while in which others end cells
    # imported on the compute node only: whoever submits needs no torch
    from ..harness.ranks import find_ranks  # noqa: PLC0415
    from ..harness.run import run_cells  # noqa: PLC0415

    statuses: dict[str, str] = run_cells(cells, store, find_ranks(), say, cell_timeout_s, known, ASK_AGAIN_S)
    return statuses


def local_rendezvous(job: JobEnvironment) -> dict[str, str]:
    """Variables of torchrun, from submitit's own: neither MPI nor Slurm starts the ranks of a local job."""
    rank, world, port = str(job.global_rank), str(job.num_tasks), 20000 + int(job.job_id) % 10000
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def submit(plan: Plan, sweep: str, store: Store, site: str, runner: str = RUNNER) -> list[str]:
    """Hand a plan's missing cells to a site; returns the ids of the jobs.

    Slurm queues them and this returns; with executors local and debug it returns when all have run. `sweep` is the
    file with settings and store as they are typed (`jobs.commands.typed`).

    Raises:
        ValueError: the site has a mistake or does not fit the sweep, or Slurm is not there or refuses.
    """
    where = read_site(site)
    todo = batches(plan, store, where)
    verb = {"slurm": _submit_slurm, "local": _run_local, "debug": _run_debug}[where.executor]
    store.begin()
    ids = verb(todo, sweep, store, where, runner)
    say(_next_steps(ids, sweep, store, where) if ids else f"nothing is missing in {store.root}")
    return ids


def dry_run(plan: Plan, sweep: str, store: Store, site: str) -> str:
    """The text that `submit` would give to sbatch, array by array; needs no Slurm.

    Raises:
        ValueError: the site has a mistake or does not fit the sweep.
    """
    where = read_site(site)
    todo = batches(plan, store, where)
    if where.executor != "slurm":
        return "\n".join([*(f"# {b}" for b in todo), f"# executor {where.executor}: they run here, without sbatch"])
    sent = [(b.wave, f"WAVE{b.wave}") for b in todo]
    sheets = (_sheet(b, sweep, store, where, _before(b.wave, sent)) for b in todo)
    return "\n".join(sheets) or "# nothing is missing"


def _sheet(batch: Batch, sweep: str, store: Store, site: Site, after: Sequence[str]) -> str:
    executor = _Paper(store.logs().resolve() / "%j", max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(**slurm_parameters(batch, sweep, site, after))
    return f"# {batch}\n{executor.text(len(batch.jobs))}"


class _Paper(SlurmExecutor):
    """Writes what SlurmExecutor would submit, where there is no Slurm too."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def text(self, jobs: int) -> str:
        # submitit makes an array of two jobs or more, and a plain job of one
        self.parameters.update({"map_count": jobs} if jobs > 1 else {})
        return self._make_submission_file_text(self._submitit_command_str, "")


def slurm_parameters(batch: Batch, sweep: str, site: Site, after: Sequence[str]) -> dict[str, Any]:
    """The parameters, in submitit's words, of an array that waits for the jobs `after`, however they end.

    Raises:
        ValueError: the ranks do not fill the site's nodes, or it has no GPU for them.
    """
    nodes, on_node = site.shape(batch.ranks)
    asked = {
        "job_name": f"lacuna-{Path(shlex.split(sweep)[0]).stem}",
        "time": site.time_min,
        "nodes": nodes,
        "ntasks_per_node": on_node,
        "cpus_per_task": site.cpus_per_rank,
        # per node and not per task: a rank that sees only its own GPU cannot reach its neighbour's memory
        "gpus_per_node": site.gpus(batch.device) * on_node or None,
        "mem": f"{int(1024 * site.mem_gb)}MB" if site.mem_gb else None,
        "array_parallelism": site.array_parallelism,
        "signal_delay_s": site.signal_s,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": _setup(site),
        # since Slurm 22.05 srun no longer takes the number of cores from sbatch
        "srun_args": [f"--mpi={site.mpi}", f"--cpus-per-task={site.cpus_per_rank}"],
        "additional_parameters": {"requeue": True},
    }
    named = {k: getattr(site, k) for k in ("partition", "account", "qos", "constraint")}
    return {k: v for k, v in {**asked, **named}.items() if v is not None}


def _setup(site: Site) -> list[str]:
    exports = [f"export {k}={shlex.quote(v)}" for k, v in site.environment.items()]
    return [*site.setup, *exports]


def _group_jobs(batch: Batch, store: Store, site: Site, runner: str) -> list[GroupJob]:
    root, now = str(store.root.resolve()), _now()
    plain = (tuple(cell.to_json() for cell in cells) for cells in batch.jobs)
    return [GroupJob(cells, root, site.cell_timeout_s, now, runner) for cells in plain]


def _submit_slurm(todo: Sequence[Batch], sweep: str, store: Store, site: Site, runner: str) -> list[str]:
    if shutil.which("sbatch") is None:
        raise ValueError(
            f"site {site.name} needs Slurm, but here is no sbatch; go to a login node, or take --site local"
        )
    sent: list[tuple[int, str]] = []
    for batch in todo:
        executor = SlurmExecutor(store.logs().resolve() / "%j", max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(**slurm_parameters(batch, sweep, site, _before(batch.wave, sent)))
        try:
            jobs = executor.submit_array(_group_jobs(batch, store, site, runner))
        except FailedJobError as error:
            queued = f"; already queued: {' '.join(_arrays(i for _, i in sent))}" if sent else ""
            said = " ".join(str(error).split())
            raise ValueError(f"Slurm refuses {batch}: {said}; change site {site.name}{queued}") from error
        sent += [(batch.wave, j.job_id) for j in jobs]
        say(f"{batch}: {' '.join(_arrays(j.job_id for j in jobs))}")
    return [i for _, i in sent]


def _before(wave: int, sent: Sequence[tuple[int, str]]) -> list[str]:
    """The arrays of the last wave before this one that had anything to do."""
    last = max((w for w, _ in sent if w < wave), default=None)
    return _arrays(i for w, i in sent if w == last)


def _arrays(ids: Iterable[str]) -> list[str]:
    """Slurm's number of the array is what stands before the element's: 72 of 72_0."""
    return sorted({i.partition("_")[0] for i in ids})


def _run_local(todo: Sequence[Batch], sweep: str, store: Store, site: Site, runner: str) -> list[str]:
    executor = LocalExecutor(store.logs().resolve() / "local", max_num_timeout=MAX_REQUEUES)
    executor.update_parameters(setup=local.apart(executor.folder))
    ids = []
    for batch, job in ((b, j) for b in todo for j in _group_jobs(b, store, site, runner)):
        gpus = site.gpus(batch.device) * batch.ranks
        executor.update_parameters(timeout_min=site.time_min, signal_delay_s=site.signal_s)
        executor.update_parameters(tasks_per_node=batch.ranks, gpus_per_node=gpus)
        with environment_variables(**site.environment):
            started = executor.submit(job)
        say(f"{sweep}, wave {batch.wave}: {len(job.cells)} cells, log {started.paths.stdout}")
        if started.exception() is not None:
            logs = started.paths.stderr, local.started_in(executor.folder)
            say(f"job {started.job_id} broke off: {local.last_words(logs)}")
        ids.append(started.job_id)
    return ids


def _run_debug(todo: Sequence[Batch], _: str, store: Store, site: Site, runner: str) -> list[str]:
    if any(b.ranks > 1 for b in todo):
        raise ValueError(f"site {site.name} runs cells in this one process, but the sweep asks for several ranks")
    with environment_variables(**site.environment):
        for job in (j for b in todo for j in _group_jobs(b, store, site, runner)):
            job()
    return ["here"] if todo else []


def _next_steps(ids: Sequence[str], sweep: str, store: Store, site: Site) -> str:
    if site.executor != "slurm":
        return f"see:    lacuna status {sweep}"
    arrays = " ".join(_arrays(ids))
    return (
        f"watch:  lacuna status {sweep}   or   squeue --me\n"
        f"logs:   {store.logs()}/JOB/\ncancel: scancel {arrays}; submit again to run what is missing"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
