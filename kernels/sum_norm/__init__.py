"""The parts of all ranks added to the residual, and the sum normalised: an all-reduce and the norm after it in one.

Shape legend: B texts, E hidden size, X ranks.
"""

import torch

from ..op import Case, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw
from .eager import sum_norm
from .meeting import Meeting, addresses_of

RANKS = 4
ALWAYS = 2**30  # more sums than anyone makes


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; the other ranks are memory of this one, and have come to every sum already.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `sum_norm`.
    """
    size = case.q_heads * case.head_dim
    parts = tuple(draw((case.batch, size), case, device, seed + 1 + rank) for rank in range(RANKS))
    flags = tuple(torch.full((case.batch, RANKS), ALWAYS, dtype=torch.int32, device=device) for _ in parts)
    count_C = torch.zeros(case.batch, dtype=torch.int32, device=device)
    return {
        "x_BE": draw((case.batch, size), case, device, seed + 9),
        "weight_E": draw((size,), case, device, seed + 10),
        "epsilon": 1e-5,
        "parts": parts,
        "meeting": Meeting(addresses_of(parts), addresses_of(flags), count_C, 1, flags),
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the residual, the parts and the weight read, two rows written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return ((3 + RANKS) * case.batch + 1) * case.q_heads * case.head_dim * case.item_bytes


def flops(case: Case) -> int:
    """Count the additions, and a square, a sum and two products for each element.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return (4 + RANKS) * case.batch * case.q_heads * case.head_dim


OP = Op("sum_norm", "1", __name__, sum_norm, make, moved_bytes, flops, CASES, compare_all)
