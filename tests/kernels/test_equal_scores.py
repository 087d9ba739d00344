"""Equal scores at the border of a choice, which scores of real keys have: of them the first rows are chosen.

Shape legend: B batch, N sets of rows, S rows in the cache, K width.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lacuna.kernels.select_topk.fused import select_topk
from lacuna.kernels.select_topk.joint.fused import select_joint

SPEC = importlib.util.spec_from_file_location("definitions", Path(__file__).with_name("definitions.py"))
definitions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(definitions)


def by_one_block(s_BNS, k_B, width):
    return select_topk(s_BNS, k_B, width)


def by_several(s_BNS, k_B, width):
    index_BNK = torch.empty(*s_BNS.shape[:2], width, dtype=torch.int32, device=s_BNS.device)
    count_BN = torch.empty(s_BNS.shape[:2], dtype=torch.int32, device=s_BNS.device)
    select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512)
    return index_BNK, count_BN


def tied(value, equal, rows=1100, kth=256):
    """(S,) of which the k-th best and those next to it are one value, at rows here and there."""
    s_S = torch.randn(rows, generator=torch.Generator().manual_seed(equal))
    order_S, first = s_S.argsort(descending=True), kth - 1 - equal // 3
    s_S += torch.where(s_S > s_S[order_S[first]], 10.0, -10.0)
    s_S[order_S[first : first + equal]] = value
    return s_S


@pytest.mark.parametrize("choose", [by_one_block, by_several])
def test_of_equal_scores_the_first_rows_are_chosen(choose, device):
    """Broken: of equal scores at the border the last rows are kept, or one too many, or one of another block's."""
    sets = [tied(value, equal) for value in (-1.0, 0.0, 2.0**-149) for equal in (2, 9, 12, 300)]
    s_BNS = torch.stack(sets).expand(3, -1, -1).contiguous().to(device)
    k_B = torch.tensor([255, 256, 257], dtype=torch.int32, device=device)
    found, expected = choose(s_BNS, k_B, 260), definitions.select_topk(s_BNS, k_B, 260)
    assert torch.equal(found[1].long().cpu(), expected[1])
    assert torch.equal(found[0].long().cpu(), expected[0])


@pytest.mark.parametrize("choose", [by_one_block, by_several])
def test_of_infinite_scores_the_first_rows_are_chosen(choose, device):
    """Broken: rows that are forced by +inf are more than are wanted, and none of them counts as equal to the others."""
    s_BNS = torch.randn(1, 1, 1500, generator=torch.Generator().manual_seed(0))
    s_BNS[..., 7::150] = math.inf
    k_B = torch.tensor([6], dtype=torch.int32, device=device)
    assert choose(s_BNS.to(device), k_B, 8)[0].flatten().tolist() == [7, 157, 307, 457, 607, 757, -1, -1]
