"""Places of chosen rows where several parts, or several blocks, find them one after the other.

Shape legend: B batch, N sets of rows, S rows in the cache, K width.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from lacuna.kernels.select_topk.fused import empty_choice, select_topk
from lacuna.kernels.select_topk.joint.fused import select_joint
from lacuna.kernels.tiling import SelectPlan

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)


@pytest.mark.parametrize("rows", [700, 1100])
@pytest.mark.parametrize(
    ("kind", "k"), [("normal", 300), ("normal", 0), ("ties", 300), ("constant", 300), ("wide", 300), ("hidden", 5000)]
)
def test_rows_of_several_parts_are_those_of_the_definition(kind, k, rows, device):
    """Broken: sums of four groups in one number run over, or ties of a part are counted from its own beginning."""
    s_BNS = ops.scores(kind, rows, device)[:, :2].contiguous()
    k_B = torch.tensor([k, k // 2], dtype=torch.int32, device=device)
    with ops.poisoned_memory():
        index_BNK, count_BN = select_topk(s_BNS, k_B, 500, plan=SelectPlan(512, 4, 255))
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, 500)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


@pytest.mark.parametrize(("kind", "k"), [("normal", 300), ("ties", 300), ("constant", 300), ("hidden", 5000)])
def test_rows_of_several_blocks_are_those_of_the_definition(kind, k, device):
    """Broken: a block places its rows without those of the blocks before it, or with too many ties."""
    s_BNS = ops.scores(kind, 1299, device)[:, :2].contiguous()
    k_B = torch.tensor([k, k // 2], dtype=torch.int32, device=device)
    with ops.poisoned_memory():
        index_BNK, count_BN = empty_choice(2, 2, 1500, s_BNS.device)
        select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512, part_rows=512)
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, 1500)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)
