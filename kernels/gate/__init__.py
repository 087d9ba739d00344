"""The gated product of an MLP: silu(gate) * up, of one token of each text.

Shape legend: B batch, F inner size.
"""

import torch

from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw
from .eager import gate

# Llama's MLPs are about so many times as wide as the hidden size.
WIDER = 3


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `gate`.
    """
    size = WIDER * case.q_heads * case.head_dim
    names = ("gate_BF", "up_BF")
    return {name: draw((case.batch, size), case, device, seed + place) for place, name in enumerate(names)}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: two rows read, one written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    return 3 * WIDER * case.batch * case.q_heads * case.head_dim * case.item_bytes


def flops(case: Case) -> int:
    """Count an exponential, a sum, a quotient and two products for each element.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 5 * WIDER * case.batch * case.q_heads * case.head_dim


OP = Op("gate", "1", __name__, gate, make, moved_bytes, flops, CASES)
