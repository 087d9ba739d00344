"""Kernels of a step, by what they are for."""

import ast
from pathlib import Path

import pytest

import lacuna.kernels.op
from lacuna.harness.stages import stage_of

KERNELS = Path(lacuna.kernels.op.__file__).parent


@pytest.mark.parametrize(
    ("folder", "stages"),
    [
        ("append_row", {"append"}),
        ("lowrank_score", {"score"}),
        ("sparq_score", {"score"}),
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
