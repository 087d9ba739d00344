"""Equal scores at the border of a choice, which scores of real keys have: of them the first rows are chosen.

Shape legend: B batch, N sets of rows, S rows in the cache, K width.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from lacuna.kernels.select_topk.chosen import fused as chosen
from lacuna.kernels.select_topk.fused import select_topk
from lacuna.kernels.select_topk.joint import fused as joint
from lacuna.kernels.select_topk.joint.fused import select_joint
from lacuna.kernels.select_topk.rivals.fused import closed_in
from lacuna.kernels.select_topk.search.fused import BEYOND, LEAST, ordered_key

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


@pytest.mark.parametrize(("choose", "module"), [(by_one_block, chosen), (by_several, joint)])
@pytest.mark.parametrize(("excess", "again"), [(1, False), (8, False), (9, True)])
def test_a_few_equal_scores_are_not_read_again(choose, module, excess, again, monkeypatch):
    """Broken: of 128 sets one has two equal scores at its border, is read again in parts, and the launch waits for it."""
    if torch.cuda.is_available():
        pytest.skip("steps are counted in the interpreter")
    taken, step = [], module.write_rows
    monkeypatch.setattr(module, "write_rows", lambda *given: taken.append(1) or step(*given))
    s_BNS = torch.linspace(3.0, -3.0, 600).repeat(1, 1, 1)
    s_BNS[..., 7:400:39] = 4.0
    index_BNK, _ = choose(s_BNS, torch.tensor([11 - excess], dtype=torch.int32), 16)
    assert index_BNK.flatten().tolist()[: 11 - excess] == [*range(7, 400, 39)][: 11 - excess]
    assert bool(taken) == again


@triton.jit
def closing_kernel(score_ptr, lo, hi, key_ptr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    score = tl.load(score_ptr + place)
    tl.store(key_ptr + 2 + place, ordered_key(score))
    least, most = closed_in(score, tl.load(key_ptr) * 0 + lo, tl.load(key_ptr) * 0 + hi)
    tl.store(key_ptr, least)
    tl.store(key_ptr + 1, most)


@pytest.mark.parametrize(("scores", "lo", "hi", "least", "most"), [
    ([1.0, 2.0, 3.0, 4.0], 1.5, 3.5, 2.0, 3.0),
    ([2.0, 2.0, 2.0, 2.0], 1.0, 3.0, 2.0, 2.0),  # nothing is left between the ends
    ([-4.0, -3.0, -2.0, -1.0], -3.5, -1.5, -3.0, -2.0),
    ([-1.0, -0.0, 0.0, 1.0], -0.5, 0.5, 0.0, 0.0),
    ([1.0, math.inf, -math.inf, -2.0], None, None, -2.0, math.inf),
])  # fmt: skip
def test_a_range_is_drawn_together_around_the_scores_in_it(scores, lo, hi, least, most, device):
    """Broken: a search among a few equal scores closes in on them bit by bit, or leaves one of them out."""

    def key(score):
        bits = torch.tensor([score]).view(torch.int32).item()
        return bits if bits >= 0 else -(bits & 0x7FFFFFFF) - 1

    ends = LEAST.value if lo is None else key(lo), BEYOND.value if hi is None else key(hi)
    key_T = torch.zeros(2 + len(scores), dtype=torch.int32, device=device)
    closing_kernel[(1,)](torch.tensor(scores, device=device), *ends, key_T, COUNT=len(scores))
    assert key_T[:2].tolist() == [key(least), key(most) + 1]
