"""Verifies, then times, the kernels for many query rows against PyTorch's flash and cuDNN attention.

    python3 tests/gpu/prefill.py FOLDER PART [PART ...] [--tiny]

Each part writes FOLDER/prefill_PART.csv, a line as soon as it is known; what failed verification has no time. `--tiny`
runs the same lines on small shapes in Triton's interpreter, where nothing is timed: it shows that the script works.
"""

import csv
import itertools
import sys
import time
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lacuna.kernels.baselines import versions
from lacuna.kernels.clock import copy_gb_s, percentiles, sample_ms
from lacuna.kernels.landmark_attention.fused import landmark_forward
from lacuna.kernels.landmark_gradient.fused import landmark_backward
from lacuna.kernels.many_rows import RowsCase, Tiles
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import Verdict, judge, verify

TINY = "--tiny" in sys.argv
DEVICE = torch.device("cpu" if TINY else "cuda")
REPEATS = 20
BACKENDS = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
FORWARD_TILES = (
    Tiles(128, 64, 8, 3),
    Tiles(128, 64, 8, 2),
    Tiles(128, 64, 4, 3),
    Tiles(64, 64, 4, 3),
    Tiles(128, 128, 8, 2),
)
KEY_TILES = (Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 3))
QUERY_TILES = (Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 3), Tiles(128, 32, 4, 3))


@dataclass(frozen=True)
class Line:
    """One line of results, in the columns of `lacuna bench` and some more."""

    op: str
    case: str
    twin: str = ""
    baseline: str = ""
    status: str = "ok"
    reason: str = ""
    device: str = ""
    versions: str = ""
    dtype: str = ""
    plan: str = ""
    error: float | None = None
    eager_error: float | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    peak_mib: float | None = None
    bytes: int = 0
    flops: int = 0
    ceiling_gb_s: float | None = None


class Writer:
    """Lines of one part, flushed as they come and printed in short."""

    def __init__(self, folder, part, mode="w"):
        self.file = (folder / f"prefill_{part}.csv").open(mode, newline="", encoding="utf-8")
        self.csv = csv.writer(self.file)
        if mode == "w":
            self.csv.writerow(list(Line.__dataclass_fields__))
        self.card = "interpreter" if TINY else f"cuda {torch.cuda.get_device_name()}"
        self.ceiling = None if TINY else copy_gb_s(DEVICE)

    @staticmethod
    def begin(folder, part):
        """Begin a file to which several processes add."""
        with (folder / f"prefill_{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(list(Line.__dataclass_fields__))

    def put(self, line):
        """Write and print one line."""
        line = replace(line, device=self.card, versions=versions(), ceiling_gb_s=self.ceiling)
        self.csv.writerow(["" if value is None else value for value in astuple(line)])
        self.file.flush()
        print(f"{line.op:20} {line.baseline or line.twin:10} {line.case:34} {line.plan:60.60} {line.status:6} "
              f"{line.median_ms or 0:9.4f} ms {line.peak_mib or 0:9.1f} MiB {line.reason[:90]}", flush=True)  # fmt: skip
        return line


def line_of(case, op, **more):
    return Line(op, case.name, dtype=case.dtype, **more)


def timed(line, call):
    """The line with times and peak memory; in the interpreter the call is only made."""
    try:
        if TINY:
            call()
            return line
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        p10, median, p90 = percentiles(sample_ms(call, DEVICE, repeats_of(call)))
        return replace(line, median_ms=median, p10_ms=p10, p90_ms=p90, peak_mib=peak)
    except Exception as error:  # noqa: BLE001 - tiles that fit no SM must not cost the lines that follow
        return replace(line, status="failed", reason=f"{type(error).__name__}: {error}"[:200].replace("\n", " "))


def repeats_of(call):
    """Fewer of what takes long: about two seconds in all."""
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return max(3, min(REPEATS, int(2 / (time.perf_counter() - begun))))


def checked(op, case):
    """The verdict; what raises has failed."""
    try:
        return verify(op, case, DEVICE)
    except Exception as error:  # noqa: BLE001 - as above
        reason = f"{type(error).__name__}: {error}"[:200].replace("\n", " ")
        return Verdict(op.name, case.name, DEVICE.type, case.dtype, float("inf"), 0.0, passed=False, reason=reason)


def verified(writer, names):
    """All test cases of some operations, in their own dtype and in bfloat16; whether all passed."""
    passed = True
    for name in names:
        op, begun = load_op(name), time.perf_counter()
        cases = [case for case in op.cases if case.purpose == "test"]
        for case in cases[: 2 if TINY else None]:
            verdict = checked(op, case)
            status = "ok" if verdict.passed else "failed"
            writer.put(line_of(case, name, twin="verify", status=status, reason=verdict.reason,
                               error=verdict.fused_error, eager_error=verdict.eager_error))  # fmt: skip
            passed &= verdict.passed
        print(f"-- {name} verified in {time.perf_counter() - begun:.0f} s", flush=True)
    return passed


def dense(writer, case, inputs, *, backward):
    """Forward and backward of the library's kernels on the same tensors."""
    q, k, v = (inputs[name].detach().requires_grad_(backward) for name in ("q_BHTD", "k_BGSD", "v_BGSD"))
    flops = 4 * case.batch * case.q_heads * case.pairs * case.head_dim
    grad = torch.randn_like(q)
    for name, backend in BACKENDS.items():

        def forward(backend=backend):
            with nullcontext() if TINY else sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=case.q_heads != case.kv_heads)

        line = writer.put(timed(line_of(case, "attention", baseline=name, flops=flops), forward))
        if backward and line.status == "ok":
            out = forward()
            call = partial(torch.autograd.grad, out, (q, k, v), grad, retain_graph=True)
            writer.put(timed(line_of(case, "attention_gradient", baseline=name, flops=5 * flops // 2), call))


def landmark(writer, dims=(128,), names=("landmark_attention", "landmark_gradient")):
    """Landmark attention, forward and backward, by length and dim; each shape is verified, too, before it is timed."""
    passed = verified(writer, names)
    for dim, rows in itertools.product((32,) if TINY else dims, (24, 40) if TINY else (2048, 4096, 8192, 16384)):
        landmark_case(writer, (64, rows, 2, 32, 32, dim) if not TINY else (8, rows, 1, 2, 2, dim), passed=passed)


def landmark_more(writer):
    """Other blocks, dims and groups; then ways to cut the work at one length."""
    mha = [(block, 8192, 2, 32, 32, dim) for block, dim in ((51, 128), (128, 128), (16, 128), (64, 64))]
    shapes = [(5, 24, 1, 4, 2, 32)] if TINY else [*mha, (64, 8192, 2, 32, 8, 128)]
    landmark_case(writer, (64, 8192, 2, 32, 32, 128) if not TINY else (8, 40, 1, 2, 2, 32), passed=True, tries=True)
    for shape in shapes:
        landmark_case(writer, shape, passed=True)


def landmark_case(writer, shape, *, passed, tries=False):
    """Time one shape beside dense attention."""
    block, rows, batch, heads, groups, dim = shape
    name = f"b{batch}_h{heads}_g{groups}_s{rows}_block{block}_d{dim}"
    case = RowsCase(name, batch, heads, groups, rows, head_dim=dim, block=block)
    inputs = load_op("landmark_gradient").make(case, DEVICE, 0)
    dense(writer, case, inputs, backward=True)
    ours(writer, case, inputs, passed, tries=tries)
    if not TINY:
        torch.cuda.empty_cache()


def ours(writer, case, inputs, passed, *, tries):
    q, k, v, grad, start = (inputs[name] for name in ("q_BHTD", "k_BGSD", "v_BGSD", "grad_BHTD", "start_BS"))
    how = (case.block, case.head_dim**-0.5, start)
    short = replace(case, batch=1, rows=min(case.rows, 512))
    reason = ends_right(q, k, v, how) or checked(load_op("landmark_gradient"), short).reason
    state = {
        "status": "ok" if passed and not reason else "failed",
        "reason": reason or ("" if passed else "verification"),
    }
    forward, gradient = load_op("landmark_attention"), load_op("landmark_gradient")
    moved = {"flops": forward.flops(case), "bytes": forward.bytes(case)}
    saved = landmark_forward(q, k, v, *how)
    back = {"flops": gradient.flops(case) - forward.flops(case), "bytes": gradient.bytes(case)}
    for plan in (None, *(FORWARD_TILES if tries else ())):
        line = line_of(case, "landmark_attention", twin="fused", plan=str(plan or ""), **moved, **state)
        writer.put(
            timed(line, lambda plan=plan: landmark_forward(q, k, v, *how, plan)) if line.status == "ok" else line
        )
    pairs = [(QUERY_TILES[0], tiles) for tiles in KEY_TILES] + [(tiles, KEY_TILES[0]) for tiles in QUERY_TILES[1:]]
    for plans in (None, *(pairs if tries else ())):
        line = line_of(case, "landmark_gradient", twin="fused", plan=str(plans or ""), **back, **state)
        call = partial(landmark_backward, q, k, v, *saved, grad, *how, plans)
        writer.put(timed(line, call) if line.status == "ok" else line)


def ends_right(q, k, v, how):
    """What is wrong with the last rows of one head at full length, against the eager twin in float64."""
    rows = slice(-min(128, q.shape[2]), None)
    found = landmark_forward(q, k, v, *how)[0][:1, :1, rows].double()
    part = [q[:1, :1, rows], k[:1, :1], v[:1, :1]]
    eager = load_op("landmark_attention").eager
    wanted, same = eager(*(x.double() for x in part), *how), eager(*part, *how).double()
    error, bound = ((x - wanted).norm() / wanted.norm() for x in (found, same))
    return (
        ""
        if float(error) <= 2 * float(bound) + 1e-6
        else f"error {float(error):.3g} at full length, eager {float(bound):.3g}"
    )


def operations(writer, names):
    """The other operations on their timed cases, each beside dense attention of the same shape."""
    passed, seen = verified(writer, names), set()
    for name in names:
        measured(writer, name, passed=passed, seen=seen)


def measured(writer, name, *, passed, least_rows=0, most_rows=2**20, seen=None):
    """One operation on its timed cases; dense attention once for each shape not yet seen."""
    op, seen = load_op(name), set() if seen is None else seen
    cases = [case for case in op.cases if case.purpose == ("test" if TINY else "time")]
    cases = cases if TINY else [case for case in cases if least_rows <= case.rows <= most_rows]
    for case in cases[:1] if TINY else cases:
        shape = (case.batch, case.q_heads, case.kv_heads, case.rows)
        if shape not in seen:
            seen.add(shape)
            plain = RowsCase("b{}_h{}_g{}_s{}".format(*shape), *shape, head_dim=case.head_dim, dtype="bfloat16")
            dense(writer, plain, load_op("landmark_attention").make(replace(plain, block=2), DEVICE, 0), backward=False)
        inputs = op.make(case, DEVICE, 0)
        line = line_of(case, name, twin="fused", bytes=op.bytes(case), flops=op.flops(case))
        if not passed:
            line = replace(line, status="failed", reason="verification")
        else:
            verdict = judged(op, case, inputs)
            line = replace(line, error=verdict.fused_error, eager_error=verdict.eager_error, reason=verdict.reason,
                           status="ok" if verdict.passed else "failed")  # fmt: skip
        writer.put(timed(line, lambda op=op, inputs=inputs: op.fused(**inputs)) if line.status == "ok" else line)
        del inputs


def judged(op, case, inputs):
    """The verdict on these inputs; of long texts on a few last rows, which see as many keys, since all take minutes."""
    if case.rows <= 8192 or case.new <= 64 or op.name == "landmark_retrieve":
        return judge(op, case, inputs)
    return checked(op, replace(case, queries=64))


def long(writer):
    """Texts of more than 32768 tokens: time, and memory that grows with the text alone."""
    seen = set()
    for name in ("column_sums", "window_votes", "threshold_prefill", "kth_score", "chosen_prefill"):
        measured(writer, name, passed=True, least_rows=32769, seen=seen)


def main(folder, parts):
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        PARTS[part](Writer(folder, part))


PARTS = {
    "landmark": landmark,
    "landmark_dims": partial(landmark, dims=(128, 64, 96), names=()),
    "landmark_more": landmark_more,
    "columns": partial(operations, names=("column_sums", "window_votes")),
    "others": partial(operations, names=("linear_prefill", "landmark_retrieve")),
    "thresholds": partial(operations, names=("threshold_prefill", "kth_score")),
    "long": long,
    "scoring_ops": partial(operations, names=("chosen_prefill", "held_prefill", "evict_walk", "sparq_rows")),
}

if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tiny"]
    main(Path(words[0]), words[1:] or list(PARTS))
