"""Landmark attention: grouped softmax over blocks, for training and for prompts, with padding and packed documents.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..many_rows import RowsCase, draw_qkv, draw_starts
from ..op import Case, Inputs, Op
from . import eager
from .eager import landmark_attention

TESTED = (
    RowsCase("block16_64", 2, 2, 2, 77, head_dim=64, block=16, dtype="float32"),
    RowsCase("block51_96", 1, 3, 1, 130, head_dim=96, block=51, dtype="float16"),
    RowsCase("offset", 1, 4, 2, 101, head_dim=128, block=32, queries=37, dtype="bfloat16"),
    RowsCase("padded", 2, 2, 1, 90, head_dim=64, block=20, layout="padded", dtype="bfloat16"),
    RowsCase("packed", 2, 2, 1, 90, head_dim=64, block=7, layout="packed", dtype="float32"),
    RowsCase("block128", 1, 8, 1, 140, head_dim=64, block=128, queries=50, dtype="bfloat16"),
)
TIMED = tuple(
    RowsCase(f"b2_h32_s{rows}_block{block}", 2, 32, groups, rows, block=block, visible="full", purpose="time")
    for rows, block, groups in ((2048, 64, 32), (8192, 64, 32), (16384, 64, 32), (8192, 51, 32), (8192, 64, 8))
)
COMPILED = (
    RowsCase("plain", 1, 8, 2, 256, block=64, purpose="compile"),
    RowsCase("packed", 2, 2, 2, 256, head_dim=96, block=51, layout="packed", purpose="compile"),
    RowsCase("long", 1, 2, 2, 256, block=128, purpose="compile"),
    RowsCase("narrow", 1, 4, 2, 256, head_dim=64, block=64, purpose="compile"),
    RowsCase("wide", 1, 2, 2, 256, head_dim=64, block=32, dtype="float32", purpose="compile"),
    RowsCase("one_row", 1, 2, 2, 1, block=16, purpose="compile"),
)
CASES = TESTED + TIMED + COMPILED


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: A `RowsCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `landmark_attention`.
    """
    assert isinstance(case, RowsCase)
    more = {"block": case.block, "scale": case.head_dim**-0.5, "start_BS": draw_starts(case, device)}
    return draw_qkv(case, device, seed) | more


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries, keys and values read, the output and a float32 for each row written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    heads = 2 * case.q_heads * case.new + 2 * case.kv_heads * case.rows
    return case.batch * (heads * case.head_dim * case.item_bytes + 4 * case.q_heads * case.new)


def flops(case: Case) -> int:
    """Count the operations of the two matrix products over all visible pairs.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 4 * case.batch * case.q_heads * case.pairs * case.head_dim


MOST_BLOCK = 128  # rows of the longest block that the fused twin takes

OP = Op("landmark_attention", "2", __name__, landmark_attention, make, moved_bytes, flops, CASES)


def landmark_forward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, and give the log of each row's sum of weights, by which parts of a text are merged.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: Rows of a block, its landmark included.
        scale: Factor of the scores.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        (B, H, T, D) in the dtype of the queries, and (B, H, T) at least float32, -inf for padding: from the fused twin
        on CUDA up to blocks of 128 rows, else from the eager one.
    """
    if not q_BHTD.is_cuda or block > MOST_BLOCK:
        return eager.landmark_forward(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
    from .fused import landmark_forward as fused  # noqa: PLC0415 - a machine without Triton can use the eager twin

    return fused(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
