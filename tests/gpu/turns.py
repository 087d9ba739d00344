"""Processes that prepare side by side, and then take turns: what one is timed at, no other disturbs.

A job that fails, hangs or kills its context costs the others nothing.
"""

import multiprocessing as mp
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

# Prepares, yields once, and goes on when its turn has come; a function of a module, since a new process imports it.
Steps = Callable[[str, Path], Iterator[None]]


@dataclass
class Job:
    """One process and the end of its pipe."""

    name: str
    process: BaseProcess
    pipe: Connection
    ready: bool = False


def run_in_turns(steps: Steps, names: list[str], folder: Path, prepare_s: float, turn_s: float) -> dict[str, str]:
    """Run a job of each name.

    Args:
        steps: What a job does.
        names: Of the jobs; each writes FOLDER/NAME.log.
        folder: Exists.
        prepare_s: Seconds for what all do side by side.
        turn_s: Seconds of each turn.

    Returns:
        Name of a job -> what is wrong with it; empty if nothing is.
    """
    jobs = [_started(steps, name, folder) for name in names]
    begun = time.monotonic()
    for job in jobs:
        _prepared(job, begun + prepare_s)
    print(f"-- prepared in {time.monotonic() - begun:.0f} s", flush=True)
    for job in jobs:
        if not job.ready:
            _end(job)
    return {job.name: _turn(job, turn_s) for job in jobs}


def _work(steps: Steps, name: str, folder: Path, pipe: Connection) -> None:
    sys.stdout = sys.stderr = (folder / f"{name}.log").open("w", buffering=1)
    try:
        job = steps(name, folder)
        next(job)
        pipe.send("ready")
        pipe.recv()
        next(job, None)
    except Exception:
        traceback.print_exc()
        raise


def _started(steps: Steps, name: str, folder: Path) -> Job:
    context = mp.get_context("forkserver")  # what the script imports is imported once, before any GPU is touched
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(steps, name, folder, there), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of the pipe
    return Job(name, process, here)


def _prepared(job: Job, until: float) -> None:
    try:
        job.ready = job.pipe.poll(max(0.0, until - time.monotonic())) and job.pipe.recv() == "ready"
    except EOFError:
        job.ready = False
    if not job.ready:
        print(f"-- {job.name}: NOT prepared", flush=True)


def _end(job: Job) -> None:
    if job.process.is_alive():
        job.process.kill()
    job.process.join()


def _turn(job: Job, turn_s: float) -> str:
    if not job.ready:
        return "not prepared"
    begun = time.monotonic()
    job.pipe.send("go")
    job.process.join(turn_s)
    code = job.process.exitcode
    _end(job)
    print(f"-- {job.name}: exit {code} after {time.monotonic() - begun:.0f} s", flush=True)
    return "" if code == 0 else f"not done in {turn_s:.0f} s" if code is None else f"exit {code}"
