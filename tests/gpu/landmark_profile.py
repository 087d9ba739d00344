"""What a long text costs under `landmark`: launches, the kernels that take longest, its arguments, cuts of the retrieval.

    python3 tests/gpu/landmark_profile.py FOLDER [--tiny]

Prints tables, and writes FOLDER/landmark_arguments.csv and FOLDER/landmark_retrieve.csv.
"""

import csv
import sys
import time
from pathlib import Path

import scoring
import torch
from conftest_models import make_method, tokens
from torch.profiler import ProfilerActivity, profile

from lacuna.kernels.many_rows import Tiles
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import judge
from lacuna.models.bind import bind

DEVICE = "cpu" if scoring.TINY else "cuda"
# The first is that of another method, over whose time the others' are told.
ARGUMENTS = [
    None,
    {},
    {"choose": "row"},
    {"choose": "head"},
    {"blocks": 80},
    {"offload": "host"},
    {"rows": 1250},
    {"offload": "host", "choose": "head"},
]
PLANS = [Tiles(64, 0, *cut) for cut in ((4, 2), (2, 2), (1, 2), (1, 3), (2, 1))]  # the first is the default


def chunk(seen, new):
    """Profile one call of `new` rows after `seen`."""
    model = scoring.model_of(scoring.SHAPES["pocket"], DEVICE)
    ids = tokens(1, seen + new).to(DEVICE)
    with bind(model, make_method("landmark", scoring.OTHERWISE["landmark"])) as binding:
        cache = binding.cache()
        binding.feeding = "decode"
        for part in ids[:, :seen].split(new, 1):
            model.model(part, past_key_values=cache)
        synchronize()
        begun = time.perf_counter()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            model.model(ids[:, seen:], past_key_values=cache)
            synchronize()
        print(f"{new} rows after {seen}: {time.perf_counter() - begun:.4f} s under the profiler")
    on_device = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spent = sum(event.device_time for event in on_device)
    print(f"{len(on_device)} kernels in {scoring.SHAPES['pocket'][0]} layers, {spent / 1000:.2f} ms of them")
    for what, rows in (("device", 30), ("cpu", 14)):
        print(found.key_averages().table(sort_by=f"self_{what}_time_total", row_limit=rows, max_name_column_width=60))


def synchronize():
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def arguments(folder):
    """Time a whole text under other arguments than the default's."""
    model = scoring.model_of(scoring.SHAPES["pocket"], DEVICE)
    ids = tokens(1, scoring.TOKENS).to(DEVICE)
    with (folder / "landmark_arguments.csv").open("w", newline="", encoding="utf-8") as file:
        writer, dense = csv.writer(file), 0.0
        writer.writerow(["method", "arguments", "tokens", "seconds", "of_dense", "density"])
        for given in ARGUMENTS:
            name = "full" if given is None else "landmark"
            method = make_method(name, given or {})
            seconds, density = min(scoring.score(model, method, {}, ids) for _ in range(3))
            dense = dense or seconds
            words = " ".join(f"{word}={value}" for word, value in (given or {}).items())
            line = [name, words, ids.shape[1], f"{seconds:.4f}", f"{seconds / dense:.2f}", f"{density:.4f}"]
            writer.writerow(line)
            file.flush()
            print(*line)


def retrieval(folder):
    """Verify the retrieval by token and head, and time ways to cut it."""
    from triton.testing import do_bench

    op = load_op("landmark_retrieve")
    with (folder / "landmark_retrieve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "warps", "stages", "status", "ms", "gb_s"])
        for case in [case for case in op.cases if case.purpose == "time" and case.by == "token_and_head"]:
            inputs = op.make(case, torch.device(DEVICE), 0)
            for plan in PLANS:
                verdict = judge(op, case, inputs, plan)
                ms = do_bench(lambda inputs=inputs, plan=plan: op.fused(**inputs, plan=plan), return_mode="median")
                status, speed = verdict.reason or "ok", op.bytes(case) / ms / 1e6
                line = [case.name, plan.num_warps, plan.num_stages, status, f"{ms:.4f}", f"{speed:.0f}"]
                writer.writerow(line)
                file.flush()
                print(*line)
            del inputs


if __name__ == "__main__":
    out = Path(sys.argv[1])
    chunk(48 if scoring.TINY else 28672, 48 if scoring.TINY else 4096)
    if not scoring.TINY:
        retrieval(out)
    arguments(out)
