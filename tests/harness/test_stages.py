"""Kernels of a step, by what they are for."""

import ast
from pathlib import Path

import pytest
import torch

import lacuna.kernels.op
from lacuna.harness.stages import own_times, stage_ms, stage_of

KERNELS = Path(lacuna.kernels.op.__file__).parent


@pytest.mark.parametrize(
    ("folder", "stages"),
    [
        ("append_row", {"append"}),
        ("lowrank_score", {"score"}),
        ("sparq_score", {"score"}),
        ("choose_by_weight", {"select"}),
        ("sum_norm", {"collective"}),
        ("theta_rows", {"score", "select"}),
        ("select_topk", {"select"}),
        ("page_rows", {"select"}),
        ("grow_box", {"append"}),
        ("put_turned", {"append"}),
        ("gather_decode", {"gather"}),
        ("topk_decode", {"whole"}),
        ("dense_decode", {"attend", "merge"}),
        ("theta_decode", {"score", "gather", "merge"}),
        ("swap_row", {"append"}),
        ("chosen_share", {"merge"}),
        ("marked_decode", {"attend", "merge"}),
        ("linear_decode", {"merge"}),
        ("skinny_linear", {"matmul"}),
        ("gate", {"other"}),
    ],
)
def test_kernels_of_an_op_count_as_what_they_do(folder, stages):
    """A stage of the breakdown would be told as `other` once its kernel has another name."""
    names = {
        node.name
        for path in (KERNELS / folder).rglob("fused.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert {stage_of(name) for name in names} == stages


def test_the_wait_of_a_kernel_that_begins_early_is_not_its_own():
    """Stages would add up to more than the step: a product that begins early runs all the time of the kernel before."""
    spans = [("product", 1.0, 10.0), ("norm", 0.0, 4.0), ("append", 2.0, 12.0), ("gate", 13.0, 14.0)]
    assert own_times(spans) == [("norm", 4.0), ("product", 6.0), ("append", 2.0), ("gate", 1.0)]


def test_of_two_kernels_side_by_side_the_time_counts_once():
    """A short kernel on a second stream would be told beside the long one that it runs with."""
    assert own_times([("long", 0.0, 9.0), ("short", 2.0, 5.0), ("next", 8.0, 11.0)]) == [
        ("long", 9.0), ("short", 0.0), ("next", 2.0),
    ]  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_stages_add_up_to_the_busy_time():
    """An event that is no kernel, or one that is left out, would make the breakdown something else than the step."""
    x = torch.randn(4096, 4096, device="cuda")

    def step():
        return (x @ x).softmax(-1)

    step()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(20):
        step()
    end.record()
    torch.cuda.synchronize()
    found = stage_ms(step, 20)
    assert set(found) == {"matmul", "other"}
    assert sum(found.values()) == pytest.approx(start.elapsed_time(end) / 20, rel=0.15)
