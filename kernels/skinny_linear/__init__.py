"""A linear layer of few tokens, one of each text: a large weight read once.

Shape legend: B tokens, E inputs, F outputs; H query heads, G KV heads, D head dim.
"""

import torch

from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw
from .eager import skinny_linear


def _sizes(case: Case) -> tuple[int, int]:
    """E and F of a layer's queries, keys and values in one product."""
    return case.q_heads * case.head_dim, (case.q_heads + 2 * case.kv_heads) * case.head_dim


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; the weight makes outputs about as large as inputs.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `skinny_linear`.
    """
    inputs, outputs = _sizes(case)
    return {
        "x_BE": draw((case.batch, inputs), case, device, seed + 1),
        "weight_FE": draw((outputs, inputs), case, device, seed + 2) / inputs**0.5,
        "bias_F": draw((outputs,), case, device, seed + 3),
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the weight, the bias and the inputs read, the outputs written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    inputs, outputs = _sizes(case)
    return (outputs * (inputs + 1) + case.batch * (inputs + outputs)) * case.item_bytes


def flops(case: Case) -> int:
    """Count a product and a sum for each weight and token.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    inputs, outputs = _sizes(case)
    return 2 * case.batch * inputs * outputs


OP = Op("skinny_linear", "1", __name__, skinny_linear, make, moved_bytes, flops, CASES)
