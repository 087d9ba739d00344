"""Compiles, without a GPU, every kernel that the fused twins launch, and prints one JSON object for each.

Launches are intercepted: what is compiled is what production would launch, with its own constants. Run as a
process of its own, with TRITON_INTERPRET unset.
"""

import inspect
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace

import torch
import triton
from touched_early import touched_early
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from lacuna.kernels.landmark_gradient.by_sums import landmark_backward as landmark_by_sums
from lacuna.kernels.op import Case, load_op
from lacuna.kernels.skinny_linear.cut import SkinnyPlan, skinny_plan
from lacuna.kernels.skinny_linear.fused import skinny_linear
from lacuna.kernels.theta_rows.fused import theta_rows
from lacuna.kernels.theta_rows.mend import mend_plan
from lacuna.kernels.threshold_compact.fused import threshold_compact
from lacuna.kernels.topk_decode.cut import WholePlan
from lacuna.kernels.topk_decode.whole.fused import whole_decode
from lacuna.results.plugins import names

TARGET = GPUTarget("cuda", 90, 32)
NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
         torch.int32: "i32", torch.int64: "i64"}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "maxnreg", "launch_pdl")


def signature_of(value):
    if torch.is_tensor(value):
        return "*" + NAMES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i64" if value >= 2**31 else "i32"


def stack_of(cubin):
    """Bytes of a thread's stack, where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", told)[1])


def read_again(ptx):
    """Whether the last wait for other blocks is followed by a load of what was waited for; nothing if none waits.

    Behind an atomic that acquires nobody waits: what is loaded there the block that arrived last knows to be written.
    """
    lines = ptx.splitlines()
    meeting = max((place for place, line in enumerate(lines) if ".acq_rel" in line), default=len(lines))
    loads = [place for place, line in enumerate(lines[:meeting]) if "ld.volatile" in line]
    labels = {line.split(":")[0]: place for place, line in enumerate(lines) if line.startswith("$L__BB")}
    jumps = [(place, re.search(r"\bbra(?:\.uni)?\s+(\S+);", line)) for place, line in enumerate(lines)]
    loops = [(labels[jump[1]], place) for place, jump in jumps if jump and labels[jump[1]] < place]
    around = [(start, end) for start, end in loops if any(start < load < end for load in loads)]
    # A jump back over a whole wait, to a block that is laid out before it, is none.
    waits = [end for start, end in around if not any(start < other and more < end for other, more in around)]
    return loads[-1] > max(waits) if waits else None


def launch(kernel, *arguments, grid=None, warmup=False, **keywords):
    options = {name: keywords.pop(name) for name in OPTIONS if name in keywords}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | keywords
    constants, signature, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        special = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (special and value == 1):
            constants[(place,)], signature[parameter.name] = value, "constexpr"
            continue
        signature[parameter.name] = signature_of(value)
        if torch.is_tensor(value) or (special and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=TARGET, options=options)
    row = {"kernel": kernel.__name__, "dtype": " ".join(sorted(set(signature.values()))),
           "shared": compiled.metadata.shared, "cubin": len(compiled.asm["cubin"]),
           "product": "tt.dot" in compiled.asm["ttir"],
           "mma": bool(re.search(r"\b(wgmma|mma)\.", compiled.asm["ptx"])), "cp_async": compiled.asm["ptx"].count("cp.async.cg"),
           "settled": values.get("SETTLED", False), "splits": values.get("SPLITS", 1),
           "read_again": read_again(compiled.asm["ptx"]), "stack": stack_of(compiled.asm["cubin"]), **options}  # fmt: skip
    if options.get("launch_pdl"):
        row |= touched_early(compiled.asm["ptx"], [name for name in signature if signature[name] != "constexpr"])
    print(json.dumps(row), flush=True)


def main(dtypes):
    JITFunction.run = launch
    device = torch.device("cpu")
    for dtype in dtypes:
        shapes = (
            Case("gqa", 4, 32, 8, 4096, kept=1024, dtype=dtype, visible="full"),
            Case("mha", 1, 2, 2, 1000, head_dim=96, low_dims=24, kept=250, dtype=dtype, reduce="none", visible="full"),
        )
        for name in names("ops"):
            op = load_op(name)
            own = [case for case in op.cases if case.purpose == "compile"]
            for case in [case for case in own if case.dtype == dtype] if own else shapes:
                op.fused(**op.make(case, device, 0))
                if "age" in inspect.signature(op.fused).parameters:
                    op.fused(**op.make(case, device, 0), age="settled")
        gradient = load_op("landmark_gradient")
        for case in [case for case in gradient.cases if case.purpose == "compile" and case.layout == "plain"]:
            q, k, v, block, scale, _, grad = gradient.make(replace(case, dtype=dtype), device, 0).values()
            landmark_by_sums(q, k, v, q, q[..., 0].float(), grad, block, scale)
    threshold_compact(*load_op("threshold_compact").make(shapes[0], device, 0).values(), chunk_rows=1024)
    select = load_op("select_topk")
    for rows in (4156, 16384, 32828, 32829, 40960, 131072, 262144):
        case = replace(shapes[0], batch=1, rows=rows, kept=rows // 4)
        select.fused(*select.make(case, device, 0).values())
    few = replace(shapes[0], batch=1, q_heads=2, kv_heads=2, rows=16384)
    in_one_launch(few, device)
    kept_twice(shapes[0], device)
    long = replace(few, q_heads=8, rows=49152)  # whose scores tell blocks that choose jointly
    load_op("topk_decode").fused(**load_op("topk_decode").make(long, device, 0))
    by_weight(long, device)
    mended_together(dtypes[0], device)
    cut_for_h200(shapes[0], device)
    weighed_first(shapes[0], device)


def by_weight(case, device):
    """Ranked by many blocks, and by one for each set, of a step's rows."""
    choose = load_op("choose_by_weight")
    for rows in (case.rows, 16384, 32832):
        choose.fused(**choose.make(replace(case, rows=rows, kept=rows // 4), device, 0))


def in_one_launch(case, device):
    """Scores, choice and attention; in float32 they never go together, but the kernel compiles."""
    tile = 16 if case.item_bytes > 2 else 128
    whole_decode(**load_op("topk_decode").make(case, device, 0), plan=WholePlan(16384, 8, 255, tile, 4, tile, 6))


def mended_together(dtype, device):
    """Sets out of their bounds that several blocks of an H200 share; a CPU would mend each by one."""
    mend = mend_plan(16, 32768, 32, 4, 132)
    for heads in (2, 16):
        case = Case("mended", 1, heads, 2, 4096, kept=1024, dtype=dtype, visible="full")
        theta_rows(**load_op("theta_rows").make(case, device, 0), mend=mend)


def cut_for_h200(case, device):
    """Products cut as on an H200, for few tokens and many; in float32 torch multiplies, but the kernel compiles."""
    for batch in (1, 16, 32):
        inputs = load_op("skinny_linear").make(replace(case, batch=batch), device, 0)
        for outputs in (4096, 15360, 28672):
            plan = skinny_plan(batch, outputs, case.item_bytes, 132, 232448)
            skinny_linear(**inputs, plan=plan or SkinnyPlan(32, 32, 32, 4, 2, 512))


def weighed_first(case, device):
    """Thresholds of weights, for which all scores are written and looked at again."""
    for reduce in ("sum", "none"):
        decode = load_op("theta_decode")
        decode.fused(**decode.make(replace(case, reduce=reduce), device, 0) | {"placement": "post", "missing": "exact"})


def kept_twice(case, device):
    """Keys appended as they are, and once more by component, as SparQ keeps them."""
    append = load_op("append_row")
    inputs = append.make(replace(case, rows=64, kept=0, reduce="sum"), device, 0)
    append.fused(**inputs | {"leads_BGSW": inputs["keys_BGSD"].mT.contiguous().mT})


if __name__ == "__main__":
    main(sys.argv[1:])
