"""profile_training.py SWEEP [options of `lacuna run`]: runs it here, and profiles three steps of its training on the GPU.

Prints the kernels that took most device time, the share of those steps in which the device was busy, and what the host
did meanwhile.
"""

import sys

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lacuna.cli import main
from lacuna.harness.training.loop import Loop

BEFORE, PROFILED = 30, 3  # steps


def report(profiler: profile) -> None:
    """Kernels, busy share, host."""
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type.name == "CUDA")
    busy, until = 0.0, 0.0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    whole = until - spans[0][0] if spans else 0.0
    averages = profiler.key_averages()
    print(f"PROFILE {PROFILED} steps: {whole / 1e3:.1f} ms, device busy {busy / 1e3:.1f} ms, {len(spans)} kernels")
    print(averages.table(sort_by="self_device_time_total", row_limit=30, max_name_column_width=70))
    print(averages.table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=70), flush=True)


if __name__ == "__main__":
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(wait=BEFORE, warmup=2, active=PROFILED, repeat=1)
    with profile(activities=kinds, schedule=plan, on_trace_ready=report) as profiler:
        change = Loop._change

        def changed(self: Loop, sums: torch.Tensor) -> None:
            change(self, sums)
            profiler.step()

        Loop._change = changed
        code = main(["run", *sys.argv[1:]])
    sys.exit(code)
