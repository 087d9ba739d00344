"""Verifies, then times, many ways to cut the kernels in one process; the tables in docs/kernels.md come from it.

    python3 tests/gpu/sweep.py OUT.csv [gather_decode lowrank_score dense_decode]

Compilation is spread over processes first (the disk cache is shared), so that the GPU is timed by one alone.
"""

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from statistics import median

import torch
from lacuna.kernels.clock import captured, copy_gb_s, sample_ms
from lacuna.kernels.op import load_op
from lacuna.kernels.tiling import Plan
from lacuna.kernels.verify import run_poisoned, with_plan

REPEATS = 30
SPLITS = {
    "gather_decode": ((1, 2, 3), (6, 8, 12), (2, 3, 6), (50, 66, 99)),
    "dense_decode": ((1,), (4, 8), (1, 2), (33, 49, 66)),
    "lowrank_score": ((1, 2), (4, 8, 16), (1, 2, 4), (33, 66, 128)),
}
CUTS = {
    "gather_decode": ((64, 4, 3), (64, 4, 4), (64, 4, 5), (64, 4, 6), (32, 4, 6), (32, 4, 9), (32, 2, 6), (128, 8, 3),
                      (128, 8, 4), (64, 8, 5), (128, 4, 3)),
    "dense_decode": ((64, 4, 4), (64, 4, 3), (128, 8, 3), (128, 8, 4), (32, 4, 6)),
    "lowrank_score": ((256, 4, 4), (128, 4, 4), (128, 4, 6), (512, 8, 3), (256, 8, 3), (512, 8, 4), (256, 4, 3)),
}  # fmt: skip


def plans(name, place):
    return [Plan(rows, splits, warps, stages) for (rows, warps, stages), splits in product(CUTS[name], SPLITS[name][place])]


def timed_cases(name):
    return [case for case in load_op(name).cases if case.purpose == "time"]


def compile_some(job):
    name, place, some = job
    case = replace(timed_cases(name)[place], batch=1)
    inputs = load_op(name).make(case, torch.device("cuda"), 0)
    for plan in some:
        try:
            load_op(name).fused(**with_plan(inputs, plan))
        except Exception as error:
            print(name, plan, str(error).splitlines()[0][:100])
    torch.cuda.synchronize()


def jobs(names):
    for name, place in product(names, range(4)):
        todo = plans(name, place)
        yield from ((name, place, todo[part::4]) for part in range(4))


def measured(name, place, device):
    op, case = load_op(name), timed_cases(name)[place]
    inputs = op.make(case, device, 0)
    reference = op.reference(inputs)
    bound = 2 * op.compare(inputs, op.eager(**inputs), reference).error + 1e-5
    for plan in [None, *plans(name, place)]:
        arguments = with_plan(inputs, plan)
        try:
            error = op.compare(inputs, run_poisoned(op, arguments), reference).error
        except Exception as failure:
            yield name, case.name, str(plan), 0.0, str(failure).splitlines()[0][:60]
            continue
        samples = sample_ms(captured(lambda: op.fused(**arguments)), device, REPEATS)
        yield name, case.name, str(plan), median(samples), "ok" if error <= bound else f"error {error}"


def main(path, names):
    with ProcessPoolExecutor(14, torch.multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_some, jobs(names)))
    device = torch.device("cuda")
    print("copy GB/s", copy_gb_s(device))
    with open(path, "w", newline="") as file:
        for name, place in product(names, range(4)):
            found = list(measured(name, place, device))
            csv.writer(file).writerows(found)
            file.flush()
            default, good = found[0], sorted((row for row in found if row[4] == "ok"), key=lambda row: row[3])
            bad = {row[4] for row in found if row[4] != "ok"}
            print(name, default[1], f"default {default[3]:.4f}", *(f"{row[2][5:-1]}: {row[3]:.4f}" for row in good[:7]), bad, sep="\n   ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(CUTS))
