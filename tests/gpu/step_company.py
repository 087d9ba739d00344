"""Times one captured step of all ranks in different company, to find what slows a step that is fast alone.

    mpirun --bind-to none -np 2 python3 tests/gpu/step_company.py OUT run SWEEP --set ranks=2 --store STORE

Takes what `lacuna run` takes, behind a folder OUT; the sweep has one cell of `decode_time`. Before the cell is timed as
always, its step is timed alone, while the GPUs are watched, with a synchronisation after each step, beside a process
that has the last rank's GPU open, beside one that uses it, beside busy cores, and with the sums over ranks that
`sum_norm` took the place of. A line for each is printed, and OUT/company.jsonl has every step of every rank: its time, when
and how long the host launched it, clocks, power, and the processes on the GPU.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch

from lacuna.cli import main
from lacuna.harness.gpu_watch import GpuWatch, Readings
from lacuna.harness.tasks import decode_time
from lacuna.models import rank_sum

if len(sys.argv) < 3:
    sys.exit("step_company.py OUT run SWEEP [options of lacuna run]: OUT is the folder of the results")
OUT = Path(sys.argv[1])
STEPS = 64
# argv: what to do, a file that says go, a GPU, seconds
OTHER = """
import os, sys, time, torch
kind, go, seconds = sys.argv[1], sys.argv[2], float(sys.argv[4])
a = torch.randn(2**26, device=f"cuda:{sys.argv[3]}"); b = torch.empty_like(a)
torch.cuda.synchronize(); open(go + ".ready", "w").close()
while not os.path.exists(go): time.sleep(0.01)
until = time.time() + seconds
while time.time() < until:
    for _ in range(32 if kind == "busy" else 1): b.copy_(a)
    torch.cuda.synchronize()
"""
SPIN = "import time; t = time.time() + 6\nwhile time.time() < t: pass"
KINDS = ("busy", "now and then")


class Marks:
    """Times between marks: of the device where there is one, else of the host."""

    def __init__(self, cuda, count):
        self.cuda, self.at = cuda, [torch.cuda.Event(enable_timing=True) if cuda else 0.0 for _ in range(count)]

    def note(self, place):
        """Mark what was launched so far."""
        if self.cuda:
            self.at[place].record()
        else:
            self.at[place] = time.perf_counter()

    def ms(self):
        """Milliseconds between neighbours."""
        pairs = list(zip(self.at, self.at[1:], strict=False))
        return [a.elapsed_time(b) for a, b in pairs] if self.cuda else [(b - a) * 1e3 for a, b in pairs]


class Unwatched(nullcontext):
    """Reads nothing."""

    def __init__(self):
        super().__init__(self)
        self.readings = Readings()


class Company:
    """One engine, put back to the same place before each block of steps.

    Args:
        session: the model under its method.
        engine: captured, or static on a CPU.
    """

    def __init__(self, session, engine):
        self.session, self.engine, self.cuda = session, engine, session.device.type == "cuda"
        self.world, self.made = session.lm.world, engine.made
        self.before = [(part, part.clone()) for part in engine._state()]

    def back(self):
        """To the place where it began."""
        for part, old in self.before:
            part.copy_(old)
        self.engine.made = self.made

    def sync(self):
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def block(self, name, steps, watch=None, each=lambda: None):
        """Time so many steps on all ranks, print a line, and keep all of it."""
        self.back()
        self.sync()
        self.world.gather(None)
        marks, launch_ms, launched_at_ms = Marks(self.cuda, steps + 1), [], []
        with watch or GpuWatch(self.session.device) as seen:
            begun = time.perf_counter()
            marks.note(0)
            for step in range(steps):
                start = time.perf_counter()
                self.engine.step()
                launch_ms.append((time.perf_counter() - start) * 1e3)
                launched_at_ms.append((start - begun) * 1e3)
                marks.note(step + 1)
                each()
            self.sync()
        mine = {"ms": marks.ms(), "launch_ms": launch_ms, "launched_at_ms": launched_at_ms, **vars(seen.readings)}
        ranks = self.world.gather(mine)
        if self.world.ranks.rank == 0:
            self.tell(name, ranks)

    def tell(self, name, ranks):
        """A line, and all that was read."""
        with (OUT / "company.jsonl").open("a") as file:
            file.write(json.dumps({"name": name, "ranks": ranks}) + "\n")
        slowest = sorted(max(rank["ms"][i] for rank in ranks) for i in range(len(ranks[0]["ms"])))
        state = [f"{min(r['sm_mhz']):.0f} MHz {median(r['power_w']):.0f} W {r['held_down']} {len(r['processes'])} processes"
                 for r in ranks if r["sm_mhz"]]  # fmt: skip
        launch = max(median(rank["launch_ms"]) for rank in ranks)
        print(f"{name:36s} step {median(slowest):7.3f} ms, 10% {slowest[len(slowest) // 10]:7.3f}, most {slowest[-1]:8.3f}; "
              f"launch {launch:6.3f};", *state, flush=True)  # fmt: skip


def others(company):
    """Processes on the last rank's GPU that wait for a file; none on a CPU and on other ranks."""
    ranks = company.world.ranks
    if not company.cuda or ranks.rank < ranks.size - 1:
        return []
    gpu = str(torch.cuda.current_device())
    return [subprocess.Popen([sys.executable, "-c", OTHER, kind, OUT / f"go {kind}", gpu, "4"]) for kind in KINDS]


def beside_others(company, started, steps):
    """A GPU that another process has open, then one that it uses."""
    while started and not all((OUT / f"go {kind}.ready").exists() for kind in KINDS):
        time.sleep(0.05)
    company.block("another process has the GPU open", steps)
    for place, kind in enumerate(KINDS):
        company.world.gather(None)
        (OUT / f"go {kind}").touch()
        time.sleep(0.3)
        company.block(f"another process uses it, {kind}", steps)
        if started:
            started[place].wait()


def beside_busy_cores(company, steps):
    """As many busy processes for each rank as there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(os.cpu_count() or 1)]
    time.sleep(0.5)
    company.block("busy cores", steps)
    for process in busy:
        process.kill()
        process.wait()


def with_sums_of_before(company, steps):
    """An all-reduce and a norm of its own, captured anew."""
    own, rank_sum.RankSum.parts = rank_sum.RankSum.parts, lambda *_: None
    company.back()
    if company.cuda:
        company.engine._graph = None
        company.engine.capture()
    company.block("sums apart from the norm", steps)
    rank_sum.RankSum.parts = own
    company.back()
    if company.cuda:
        company.engine._graph = None
        company.engine.capture()
    company.back()


def timed(task, session, step, *given):
    """In place of the task's own timing, which comes last."""
    company, steps = Company(session, step.__self__), min(STEPS, task.steps)
    for _ in range(task.warmup):
        step()
    started = others(company)
    company.block("alone, not watched", steps, Unwatched())
    company.block("alone", steps)
    company.block("alone, all steps", task.steps)
    company.block("a synchronisation each step", steps, each=company.sync)
    if company.cuda:
        beside_others(company, started, steps)
    company.block("alone again", steps)
    beside_busy_cores(company, steps)
    with_sums_of_before(company, steps)
    return OWN(task, session, step, *given)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    OWN, decode_time.DecodeTime._timed = decode_time.DecodeTime._timed, timed
    sys.exit(main(sys.argv[2:]))
