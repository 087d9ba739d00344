"""How a selection is cut, and what it chooses where its search cannot narrow down."""

import math

import pytest
import torch

from lacuna.kernels.op import load_op
from lacuna.kernels.tiling import body_and_rest, select_plan
from lacuna.kernels.topk_decode.cut import whole_plan

H200, A100, RTX_4090 = 232448, 166912, 101376  # bytes of shared memory that a block may have


def test_selections_are_cut_into_powers_of_two():
    """Broken: a width of cache gives a number of warps that Triton refuses on a GPU, or rows that no block holds."""
    for rows in range(1, 40961):
        body, rest = body_and_rest(rows)
        assert body + rest >= rows
        plan = select_plan(body)
        assert all(not size & (size - 1) for size in (body, rest, *plan))
        assert plan.num_warps <= 32
        assert 512 <= plan.sample_rows <= 2048
        # a thread holds four neighbours at least, and no more than its registers do
        assert 128 * plan.num_warps <= max(512, body)
        assert body + rest <= 80 * 32 * plan.num_warps


@pytest.mark.parametrize("dims", [16, 24, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_one_launch_is_planned_where_each_set_has_an_sm(dims, head_dim):
    """Broken: sets share an SM or leave some idle, or an H200 no longer has the plan that was timed there."""
    timed = {16: 512, 24: 512, 64: 256, 128: 128}[dims], 4, 64 if head_dim == 256 else 128, 6
    assert whole_plan(128, 16384, dims, head_dim, 2, 132, H200) == (16384, 8, 255, *timed)
    for sets, rows, item_bytes in ((64, 16384, 2), (640, 16384, 2), (128, 4096, 2), (128, 16400, 2), (128, 16384, 4)):
        assert whole_plan(sets, rows, dims, head_dim, item_bytes, 132, H200) is None


@pytest.mark.parametrize(("sms", "shared"), [(132, H200), (108, A100), (128, RTX_4090)], ids=["H200", "A100", "4090"])
@pytest.mark.parametrize("dims", [16, 24, 64, 256])
@pytest.mark.parametrize("head_dim", [64, 96, 256, 1024])
def test_one_launch_asks_for_no_more_than_a_block_may_have(head_dim, dims, sms, shared):
    """Broken: Triton refuses the launch where three would have run."""
    plan = whole_plan(sms, 16384, dims, head_dim, 2, sms, shared)
    attend_bytes, score_bytes = (2 * {24: 32, 96: 128}.get(size, size) for size in (head_dim, dims))
    if plan is not None:
        # Of six stages of attention two or three hold a key's tile and a value's, as the compiler likes.
        assert 6 * plan.attend_rows * attend_bytes < shared
        assert plan.score_stages * plan.score_rows * score_bytes < shared


def test_one_launch_is_planned_by_what_its_blocks_hold():
    """Broken: a GPU with less shared memory than an H200 never has one launch, or has one that Triton refuses."""
    assert whole_plan(108, 16384, 16, 64, 2, 108, A100) is not None
    assert whole_plan(108, 16384, 16, 128, 2, 108, A100) is None
    assert whole_plan(128, 16384, 16, 64, 2, 128, RTX_4090) is None


@pytest.mark.parametrize("rows", [100, 1100])
@pytest.mark.parametrize("wanted", [0, 5, 40])
@pytest.mark.parametrize("below", [0.0, -math.inf, math.nan])
def test_of_more_forced_rows_than_are_wanted_the_lowest_are_chosen(rows, wanted, below, device):
    """Broken: a search whose upper bound is beyond infinity ends with other rows, or with more."""
    s_BNS = torch.full((1, 2, rows), below, device=device)
    s_BNS[0, 0, 1::2] = math.inf
    s_BNS[0, 1, -3:] = math.inf
    k_B = torch.tensor([wanted], dtype=torch.int32, device=device)
    index_BNK, count_BN = load_op("select_topk").fused(s_BNS=s_BNS, k_B=k_B, width=40)
    last = [row for row in range(rows) if math.isfinite(below) or row >= rows - 3]
    last = sorted(sorted(last, key=lambda row: (row < rows - 3, row))[:wanted])
    for line, chosen in enumerate(([2 * place + 1 for place in range(wanted)], last)):
        assert count_BN[0, line] == len(chosen)
        assert index_BNK[0, line].tolist() == chosen + [-1] * (40 - len(chosen))
