"""Decode attention that returns the sum of its weights, and leaves the weights as marks on the rows it read.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim.
"""

import torch

from ..op import Case, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw, draw_intervals
from .eager import marked_decode


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; one whose scores are summed keeps no marks, with sets of a head all are marked alike.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `marked_decode`.
    """
    cache = (case.batch, case.kv_heads, case.rows, case.head_dim)
    lo_B, hi_B = draw_intervals(case, device, seed)
    generator = torch.Generator(device=device).manual_seed(seed + 4)
    marks = torch.rand(cache[:3], generator=generator, device=device)
    return {
        "q_BHD": draw((case.batch, case.q_heads, case.head_dim), case, device, seed + 1),
        "k_BGSD": draw(cache, case, device, seed + 2),
        "v_BGSD": draw(cache, case, device, seed + 3),
        "lo_B": lo_B,
        "hi_B": hi_B,
        "scale": case.head_dim**-0.5,
        "marks_BGS": marks[..., :0] if case.reduce == "sum" else marks,
        "carry": 1.0 if case.purpose == "time" else 0.5,
        "sets": 1 if case.reduce == "none" else case.kv_heads,
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: K and V once, marks read and written, queries, outputs; no scores in between.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    rows = case.kv_heads * case.rows * (2 * case.head_dim * case.item_bytes + (0 if case.reduce == "sum" else 8))
    return case.batch * (rows + case.q_heads * (2 * case.head_dim * case.item_bytes + 4))


def flops(case: Case) -> int:
    """Count the two products.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 4 * case.batch * case.q_heads * case.rows * case.head_dim


OP = Op("marked_decode", "2", __name__, marked_decode, make, moved_bytes, flops, CASES, compare_all, ("marks_BGS",))
