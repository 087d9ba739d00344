"""A residual added and the sum normalised (RMSNorm), of one token of each text.

Shape legend: B batch, E hidden size.
"""

import torch

from ..op import Case, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw
from .eager import add_norm


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; the hidden size is that of all query heads.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `add_norm`.
    """
    size = case.q_heads * case.head_dim
    rows = [draw((case.batch, size), case, device, seed + place) for place in (1, 2)]
    return {"x_BE": rows[0], "delta_BE": rows[1], "weight_E": draw((size,), case, device, seed + 3), "epsilon": 1e-5}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: two rows and the weight read, two rows written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return (4 * case.batch + 1) * case.q_heads * case.head_dim * case.item_bytes


def flops(case: Case) -> int:
    """Count an addition, a square, a sum and two products for each element.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 5 * case.batch * case.q_heads * case.head_dim


OP = Op("add_norm", "1", __name__, add_norm, make, moved_bytes, flops, CASES, compare_all)
