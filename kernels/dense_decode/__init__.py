"""Dense decode attention: one query token of each sequence against all of its visible rows.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim.
"""

import torch

from ..drawn import draw_cache
from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw_intervals
from .eager import dense_decode


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `dense_decode`.
    """
    lo_B, hi_B = draw_intervals(case, device, seed)
    bounds = {"lo_B": lo_B, "hi_B": hi_B, "scale": case.head_dim**-0.5}
    return draw_cache(case, device, seed)._asdict() | bounds


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: K and V read once, queries read, output written.

    Args:
        case: All of its rows count as visible.

    Returns:
        Bytes.
    """
    cache = 2 * case.batch * case.kv_heads * case.rows * case.head_dim
    return (cache + 2 * case.batch * case.q_heads * case.head_dim) * case.item_bytes


def flops(case: Case) -> int:
    """Count the operations of the two matrix products.

    Args:
        case: All of its rows count as visible.

    Returns:
        Floating-point operations.
    """
    return 4 * case.batch * case.q_heads * case.rows * case.head_dim


OP = Op("dense_decode", "1", __name__, dense_decode, make, moved_bytes, flops, CASES)
