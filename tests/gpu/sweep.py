# ruff: noqa: B023, BLE001, PTH123
"""Verifies, then times, many ways to cut the kernels in one process; the tables in docs/kernels.md come from it.

    python3 tests/gpu/sweep.py OUT.csv [gather_decode lowrank_score dense_decode select_topk] [pipelines]

"pipelines" times the chains with and without overlapping launches.

Compilation is spread over processes first (the disk cache is shared), so that the GPU is timed by one alone.
"""

import csv
import importlib
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from statistics import median

import torch

from lacuna.kernels.clock import captured, copy_gb_s, sample_ms
from lacuna.kernels.op import load_op
from lacuna.kernels.overlap.fused import overlap
from lacuna.kernels.pipeline import STAGES, make_pipeline
from lacuna.kernels.tiling import Plan, SelectPlan
from lacuna.kernels.verify import run_poisoned, with_plan

REPEATS = 30
SPLITS = {
    "gather_decode": ((1, 2), (3, 6), (3, 6), (50, 66), (3,)),
    "dense_decode": ((1,), (2, 4), (1, 2), (33, 49), (1,)),
    "lowrank_score": ((1, 2), (3, 4), (2, 3, 4), (33, 49), (2, 4)),
}
CUTS = {
    "gather_decode": ((64, 4, 4), (64, 4, 5), (32, 2, 6), (32, 2, 8), (32, 1, 6), (16, 1, 8), (64, 2, 4), (64, 2, 6),
                      (128, 4, 3), (128, 4, 4)),
    "dense_decode": ((64, 4, 4), (64, 4, 3), (128, 8, 3), (32, 4, 6)),
    "lowrank_score": ((256, 4, 3), (128, 4, 4), (512, 8, 3), (1024, 8, 2), (512, 4, 2), (512, 4, 3)),
}  # fmt: skip
SELECT = {
    4096: ((4, 512), (4, 1024), (8, 512)),
    16384: ((8, 512), (8, 1024), (8, 2048), (16, 1024)),
    32768: ((16, 512), (16, 1024), (16, 2048), (16, 4096)),
}  # fmt: skip
FUSED = (
    "dense_decode",
    "gather_decode",
    "lowrank_score",
    "select_topk",
    "select_topk.joint",
    "threshold_compact",
    "threshold_score",
)


def plans(name, place):
    if name == "select_topk":
        return [SelectPlan(*cut) for cut in SELECT.get(timed_cases(name)[place].rows, ())]
    cuts = product(CUTS[name], SPLITS[name][place])
    return [Plan(rows, splits, warps, stages) for (rows, warps, stages), splits in cuts]


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
    for name, place in product(names, range(5)):
        todo = plans(name, place)
        yield from ((name, place, todo[part::4]) for part in range(5))


def measured(name, place, device):
    op, case = load_op(name), timed_cases(name)[place]
    inputs = op.make(case, device, 0)
    if name == "select_topk":  # what scores look like: the best of a group, not one normal draw
        stages = make_pipeline(case, device, 0).stages
        inputs = {"s_BNS": load_op("lowrank_score")(*stages["lowrank_score"].values())} | stages[name]
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


def switched(mode, modules):
    """Launch all kernels in one way: 0 apart, 1 overlapping, 2 as early as possible, 3 as the code chooses."""
    for module, own in modules.items():
        module.overlap = own if mode == 3 else lambda device, *_, mode=mode: overlap(device, mode)


def pipelines(device):
    modules = [importlib.import_module(f"lacuna.kernels.{op}.fused") for op in FUSED]
    own = {module: module.overlap for module in modules}
    for place, name in product(range(5), STAGES):
        pipeline = make_pipeline(timed_cases("dense_decode")[place], device, 0, name)
        verdicts = [v.reason for v in pipeline.verdicts() if not v.passed]
        for mode in (3, 0):
            switched(mode, own)
            time = median(sample_ms(captured(pipeline.run), device, REPEATS))
            yield name, pipeline.case.name, f"overlap={mode}", time, "; ".join(verdicts) or "ok"
            print(name, pipeline.case.name, mode, f"{time:.4f}", verdicts, flush=True)
        switched(3, own)


def chunked(device):
    for name, place, chunk in product(("threshold_compact",), range(5), (2048, 4096, 8192, 16384)):
        case = timed_cases(name)[place]
        function = getattr(importlib.import_module(f"lacuna.kernels.{name}.fused"), name)
        inputs = load_op(name).make(case, device, 0)
        error = load_op(name).compare(inputs, function(*inputs.values(), chunk), load_op(name).reference(inputs))
        time = median(sample_ms(captured(lambda: function(*inputs.values(), chunk)), device, REPEATS))
        print(name, case.name, chunk, f"{time:.4f}", error.error, error.reason[:50], flush=True)
        yield name, case.name, f"chunk={chunk}", time, "ok" if error.error == 0.0 else error.reason[:50]


def main(path, names):
    chains = "pipelines" in names
    names = [name for name in names if name != "pipelines"]
    with ProcessPoolExecutor(14, torch.multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_some, jobs(names)))
    device = torch.device("cuda")
    print("copy GB/s", copy_gb_s(device))
    with open(path, "w", newline="") as file:
        for name, place in product(names, range(5)):
            found = list(measured(name, place, device))
            csv.writer(file).writerows(found)
            file.flush()
            default, good = found[0], sorted((row for row in found if row[4] == "ok"), key=lambda row: row[3])
            bad = {row[4] for row in found if row[4] != "ok"}
            print(
                name,
                default[1],
                f"default {default[3]:.4f}",
                *(f"{row[2]}: {row[3]:.4f}" for row in good[:7]),
                bad,
                sep="\n   ",
                flush=True,
            )
        if chains:
            csv.writer(file).writerows([*pipelines(device), *chunked(device)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or list(CUTS))
