"""The mean of the values in place of rows that were not attended, by the weight that these would have had.

Shape legend: B batch, H query heads, G KV heads, D head dim.
"""

import torch

from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw, draw_intervals
from .eager import fill_missing


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; in ragged ones some sequences see nothing, and some shares are all or nothing.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `fill_missing`.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    share_BH = torch.rand(case.batch, case.q_heads, generator=generator, device=device)
    context_B = torch.full((case.batch,), case.rows, dtype=torch.int32, device=device)
    if case.visible == "ragged":
        lo_B, hi_B = draw_intervals(case, device, seed)
        context_B = (hi_B - lo_B).clamp(min=0)
        share_BH[:, 0], share_BH[:, -1] = 0.0, 1.0
    sums = torch.randn(case.batch, case.kv_heads, case.head_dim, generator=generator, device=device) * case.rows**0.5
    out_BHD = draw((case.batch, case.q_heads, case.head_dim), case, device, seed)
    return {"out_BHD": out_BHD, "share_BH": share_BH, "sum_BGD": sums, "context_B": context_B, "factor": 0.75}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the attention read and written, sums and shares read.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    heads = case.q_heads * (2 * case.head_dim * case.item_bytes + 4)
    return case.batch * (heads + 4 * case.kv_heads * case.head_dim + 4)


def flops(case: Case) -> int:
    """Count two products, a sum and a quotient for each element.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 4 * case.batch * case.q_heads * case.head_dim


OP = Op("fill_missing", "1", __name__, fill_missing, make, moved_bytes, flops, CASES)
