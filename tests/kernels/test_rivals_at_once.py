"""Choices by several blocks that wait for each other, without a GPU: each is a thread of Triton's interpreter.

Shape legend: B batch, N sets of rows, S rows in the cache, K width, C blocks (chunks) of a row.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import triton

from lacuna.kernels.select_topk.eager import select_topk
from lacuna.kernels.select_topk.fused import empty_choice
from lacuna.kernels.select_topk.joint import fused
from lacuna.kernels.select_topk.places.fused import GROUP_ROWS
from lacuna.kernels.select_topk.rivals.fused import LINE
from lacuna.kernels.tiling import power_of_2

SPEC = importlib.util.spec_from_file_location("at_once", Path(__file__).with_name("at_once.py"))
at_once = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(at_once)

SETS, ROWS, CHUNK, CHUNKS = 2, 1299, 512, 3
KINDS = {
    "normal": lambda s_BNS: s_BNS,
    "many equal": lambda s_BNS: (2 * s_BNS).round() / 2,
    "not finite": lambda s_BNS: (
        s_BNS.masked_fill(s_BNS > 1, math.inf).masked_fill(s_BNS.abs() < 0.2, math.nan).masked_fill(s_BNS < -1, -math.inf)
    ),
    "hidden before and behind": lambda s_BNS: s_BNS.index_fill(
        2, torch.tensor([row for row in range(ROWS) if not 600 <= row < 1100]), -math.inf
    ),
    "all equal": lambda s_BNS: torch.full_like(s_BNS, -0.25),
}  # fmt: skip


def chosen_at_once(s_BNS, k_B, width, board):
    """What `select_joint` launches for a row of C blocks, which it does not where an interpreter runs it."""
    index_BNK, count_BN = empty_choice(1, SETS, width, s_BNS.device)
    at_once.AtOnce(fused.select_joint_kernel)[(SETS * CHUNKS,)](
        s_BNS, k_B, s_BNS, board, index_BNK, count_BN, ROWS, width, WORDS=fused.set_words(CHUNKS), SETS=SETS,
        CHUNK=CHUNK, CHUNKS=CHUNKS, GROUPS=CHUNK // GROUP_ROWS.value, ALIGNED=False, DIRECT=False, THREADS=32,
        BLOCK_CHUNKS=power_of_2(CHUNKS), BLOCK_LINES=power_of_2(CHUNKS) * LINE.value,
        BLOCK_TAIL=power_of_2(triton.cdiv(width, CHUNKS)), PARTS=0,
        BLOCK_PARTS=1, OVERLAP=False,
    )  # fmt: skip
    return index_BNK, count_BN


@pytest.mark.skipif(torch.cuda.is_available(), reason="where a GPU is, kernels are compiled for it")
@pytest.mark.parametrize("wanted", [325, 7, 1, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_wait_for_each_other_choose_the_same_rows(kind, wanted):
    """Broken: a block counts or ranks other scores than the rest of its set, or they wait for ever."""
    s_BNS = KINDS[kind](torch.randn(1, SETS, ROWS, generator=torch.Generator().manual_seed(wanted)))
    k_B, width = torch.tensor([wanted], dtype=torch.int32), max(wanted, 1)
    board = torch.zeros(fused.board_words(SETS, ROWS, s_BNS.device, CHUNK), dtype=torch.int64)
    index_BNK, count_BN = chosen_at_once(s_BNS, k_B, width, board)
    expected_BNK, expected_BN = select_topk(s_BNS, k_B, width)
    assert torch.equal(count_BN, expected_BN)
    assert torch.equal(index_BNK, expected_BNK)
    lines = board[1:].view(SETS, -1)[:, -CHUNKS * LINE.value :]
    if kind == "normal" and wanted:
        assert lines.any(), "no block told another the scores still in question"
