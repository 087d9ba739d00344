"""Queries and keys of one token of each text turned by their position (RoPE, halves).

Shape legend: B batch, H query heads, G KV heads, D head dim.
"""

import torch

from ..op import Case, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw
from .eager import rotate_rows


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `rotate_rows`.
    """
    angle_BD = draw((case.batch, case.head_dim // 2), case, device, seed + 3).float().repeat(1, 2)
    return {
        "q_BHD": draw((case.batch, case.q_heads, case.head_dim), case, device, seed + 1),
        "k_BGD": draw((case.batch, case.kv_heads, case.head_dim), case, device, seed + 2),
        "cos_BD": angle_BD.cos().to(case.torch_dtype),
        "sin_BD": angle_BD.sin().to(case.torch_dtype),
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries and keys read and written, cosines and sines read.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return 2 * case.batch * (case.q_heads + case.kv_heads + 1) * case.head_dim * case.item_bytes


def flops(case: Case) -> int:
    """Count two products and a sum for each element.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 3 * case.batch * (case.q_heads + case.kv_heads) * case.head_dim


OP = Op("rotate_rows", "1", __name__, rotate_rows, make, moved_bytes, flops, CASES, compare_all)
