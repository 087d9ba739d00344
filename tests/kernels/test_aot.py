"""Every kernel compiles for the GPU it is meant for, on a machine without one."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from touched_early import touched_early

import lacuna.kernels.op

# Bytes a thread, with which what is spilled stays out of the loops that are most of the time: of a choice some lie in the
# one that takes up to eight equal scores out, and around it.
MOST_STACK = 512
MOST_SHARED = 113 * 1024  # bytes of a block with which an SM, of 228 KiB and one more for each block, holds two
# Kernels whose blocks wait for each other, and what `read_again` says of them where a block is alone, if it can be.
WAITING = {"select_joint_kernel": set(), "bound_kernel": {None}}
# What kernels may read before they wait for those before them, where it is settled.
SETTLED = {
    "linear_decode_kernel": ["state_ptr", "norm_ptr", "scale_ptr"],
    "lowest_row_kernel": ["number_ptr", "recent_ptr", "marks_ptr", "numbers_ptr"],
    "swap_row_kernel": ["number_ptr", "recent_ptr", "keys_ptr", "values_ptr", "marks_ptr", "numbers_ptr"],
}
DTYPES = ("bfloat16", "float32")
KERNELS = Path(lacuna.kernels.op.__file__).parent


def functions_in_source():
    """What each function of the fused twins calls, by name."""
    return {
        node.name: {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
        for path in KERNELS.rglob("fused.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def kernels_in_source():
    return {name for name in functions_in_source() if name.endswith("_kernel")}


def kernels_with_products():
    """Kernels that multiply matrices, by themselves or in a function that they call."""
    called = functions_in_source()
    found = {"tl.dot"}
    while more := {name for name, calls in called.items() if calls & found} - found:
        found |= more
    return {name for name in found if name.endswith("_kernel")}


@pytest.mark.parametrize(("line", "read", "written"), [
    ("ld.global.b32 { %r1 }, [ %rd2 + 0 ];", ["a_ptr"], []),
    ("@%p1 ld.volatile.global.b64 { %rd9 }, [ %rd2 ];", ["a_ptr"], []),
    ("ld.acquire.gpu.global.u32 %r1, [%rd2];", ["a_ptr"], []),
    ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd2 + 0 ], 0x10, %r3;", ["a_ptr"], []),
    ("@%p1 st.global.v4.b32 [ %rd2 + 0 ], { %r1, %r2, %r3, %r4 };", [], ["a_ptr"]),
    ("red.global.add.u32 [%rd2], 1;", [], ["a_ptr"]),
    ("atom.global.gpu.acq_rel.add.u32 %r1, [ %rd2 + 0 ], %r2;", [], ["a_ptr"]),
    ("cp.async.bulk.prefetch.L2.global [%rd2], %r1;", [], []),
    ("st.shared.b32 [ %r1 + 0 ], %r2;", [], []),
])  # fmt: skip
@pytest.mark.parametrize("waits", [True, False])
def test_what_is_touched_ahead_of_the_wait_is_found(line, read, written, waits):
    """Broken: a kernel reads what is not settled, or writes, before its wait, or has none, and nobody is told."""
    wait = ["griddepcontrol.wait;"] if waits else []
    lines = [
        "ld.param.b64 %rd1, [k_param_1];",
        "add.s64 %rd2, %rd1, %rd3;",
        line,
        *wait,
        "st.global.b32 [ %rd1 ], %r1;",
    ]
    found = touched_early("\n".join(lines), ["rows", "a_ptr"])
    assert found == {"read_early": read, "written_early": written if waits else ["a_ptr"]}


@pytest.fixture(scope="module")
def compiling(tmp_path_factory):
    """Two compilers side by side, by dtype, each with the files that it writes: minutes where nothing is cached."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script, folder = Path(__file__).with_name("compile_for_hopper.py"), tmp_path_factory.mktemp("compiled")
    started = {}
    for dtype in DTYPES:
        told, errors = folder / f"{dtype}.jsonl", folder / f"{dtype}.txt"
        with told.open("w") as out, errors.open("w") as err:
            started[dtype] = (
                subprocess.Popen([sys.executable, script, dtype], env=environment, stdout=out, stderr=err),
                told,
                errors,
            )
    yield started
    for compiler, _, _ in started.values():
        compiler.kill()
        compiler.wait()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kernel_compiles_for_hopper(dtype, compiling):
    """Broken: a kernel that the interpreter runs is refused by the compiler, or asks for more than an SM has."""
    compiler, told, errors = compiling[dtype]
    assert compiler.wait(timeout=600) == 0, errors.read_text()[-2000:]
    rows = [json.loads(line) for line in told.read_text().splitlines()]
    assert {row["kernel"] for row in rows} == kernels_in_source()
    assert all(row["cubin"] > 0 and row["shared"] <= 227 * 1024 for row in rows)
    for row in (row for row in rows if row.get("launch_pdl")):
        # Parts of a head are found by the launch before.
        settled = row["settled"] and (row["kernel"], row["splits"] > 1) != ("swap_row_kernel", True)
        assert row["read_early"] == (SETTLED[row["kernel"]] if settled else []), row
        assert not row["written_early"], row
    assert {row["kernel"] for row in rows if row["settled"]} == set(SETTLED)
    for kernel, alone in WAITING.items():
        found = [row for row in rows if row["kernel"] == kernel]
        # One warp may have seen what another, whose tallies are summed, has not.
        assert {row["read_again"] for row in found} - alone == {True}
        # An SM holds two blocks: of 128 threads, whose registers are 255 at the most.
        assert all(row["num_warps"] <= 4 and row["shared"] <= MOST_SHARED for row in found)
    if dtype != "float32":
        assert all(row["stack"] <= MOST_STACK for row in rows)
        assert all(row["mma"] == row["product"] for row in rows)
        assert {row["kernel"] for row in rows if row["product"]} == kernels_with_products()
