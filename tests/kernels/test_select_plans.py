"""How a selection is cut, and what it chooses where its search cannot narrow down."""

import math

import pytest
import torch

from lacuna.kernels.op import load_op
from lacuna.kernels.tiling import body_and_rest, select_plan, whole_plan


def test_selections_are_cut_into_powers_of_two():
    """Broken: a width of cache gives a number of warps that Triton refuses on a GPU, or rows that no block holds."""
    for rows in range(1, 40961):
        body, rest = body_and_rest(rows)
        assert body + rest >= rows
        for plan in (select_plan(body, rest, sets, 132) for sets in (1, 640)):
            assert all(not size & (size - 1) for size in (body, rest, plan.num_warps, plan.part_rows))
            assert plan.num_warps <= 32
            assert plan.part_rows >= 512


@pytest.mark.parametrize("dims", [16, 24, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_one_launch_is_planned_where_each_set_has_an_sm(dims, head_dim):
    """Broken: sets share an SM or leave some idle, or tiles ask for more shared memory than an SM has."""
    plan = whole_plan(128, 16384, dims, head_dim, 2, 132)
    assert plan is not None
    tiles = 2 * plan.attend_rows * head_dim * 2 * (plan.attend_stages - 2) // 2, plan.score_rows * dims * 2 * 3
    assert max(tiles) <= 200 * 1024
    for sets, rows, item_bytes in ((64, 16384, 2), (640, 16384, 2), (128, 4096, 2), (128, 16400, 2), (128, 16384, 4)):
        assert whole_plan(sets, rows, dims, head_dim, item_bytes, 132) is None


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
