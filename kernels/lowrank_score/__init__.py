"""Scores of every visible row from some of its dimensions, reduced over the query heads that share a KV head.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, N = G or H sets of rows.
"""

import torch

from ..drawn import draw_leading
from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw_intervals
from .eager import lowrank_score


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `lowrank_score`.
    """
    lo_B, hi_B = draw_intervals(case, device, seed)
    q_BHR, k_BGSR = draw_leading(case, device, seed)
    return {
        "q_BHR": q_BHR,
        "k_BGSR": k_BGSR,
        "lo_B": lo_B,
        "hi_B": hi_B,
        "reduce": case.reduce,
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the low-rank keys and queries read, float32 scores written.

    Args:
        case: All of its rows count as visible.

    Returns:
        Bytes.
    """
    read = case.batch * (case.kv_heads * case.rows + case.q_heads) * case.low_dims * case.item_bytes
    return read + 4 * case.batch * case.sets * case.rows


def flops(case: Case) -> int:
    """Count the operations of the matrix product.

    Args:
        case: All of its rows count as visible.

    Returns:
        Floating-point operations.
    """
    return 2 * case.batch * case.q_heads * case.rows * case.low_dims


OP = Op("lowrank_score", "2", __name__, lowrank_score, make, moved_bytes, flops, CASES)
