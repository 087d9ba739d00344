"""The gradient of landmark attention, parallel over the sequence, without atomics or a second pass over dq.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import math

import torch

from ..landmark_attention import COMPILED, TESTED
from ..landmark_attention import make as make_forward
from ..many_rows import RowsCase
from ..op import Case, Comparison, Inputs, Op
from ..visible import draw
from .eager import landmark_gradient

# The eager twin keeps the matrix of all rows by all rows, so what is timed here is short; tests/gpu/prefill.sh goes on.
TIMED = (RowsCase("b1_h8_g8_s2048_block64", 1, 8, 8, 2048, block=64, visible="full", purpose="time"),)
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: A `RowsCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `landmark_gradient`.
    """
    inputs = make_forward(case, device, seed)
    return inputs | {"grad_BHTD": draw(tuple(inputs["q_BHTD"].shape), case, device, seed + 4)}


def compare_gradients(inputs: Inputs, output: Gradients, reference: Gradients) -> Comparison:  # noqa: ARG001
    """Compare gradients by the norm of each head's difference over the norm of its reference.

    Single elements of a gradient are sums of many rounded products, of which the worst says little.

    Args:
        inputs: Not used.
        output: The gradients of q, k and v.
        reference: The same, float64.

    Returns:
        The comparison; its error is that of the worst head of the three.
    """
    worst = 0.0
    for name, found, expected in zip("qkv", output, reference, strict=True):
        if found.shape != expected.shape:
            return Comparison(math.inf, 0.0, f"d{name} has shape {tuple(found.shape)}")
        if bool(found.isnan().any()):
            return Comparison(math.inf, 0.0, f"d{name} has {int(found.isnan().sum())} elements that are NaN")
        apart = (found.to(expected.dtype) - expected).flatten(2).norm(dim=-1)
        whole = expected.flatten(2).norm(dim=-1)
        worst = max(worst, float((apart / whole.clamp_min(1e-9 * float(whole.max()))).max()))
    return Comparison(worst, 1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: q, k, v, output, its gradient and the sums read, three gradients written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    heads = 4 * case.q_heads * case.new + 4 * case.kv_heads * case.rows
    return case.batch * (heads * case.head_dim * case.item_bytes + 4 * case.q_heads * case.new)


def flops(case: Case) -> int:
    """Count the operations of the five matrix products that a gradient needs, and the two of the forward pass.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations; the two kernels do seven products, since scores are computed twice.
    """
    assert isinstance(case, RowsCase)
    return 14 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op(
    "landmark_gradient",
    "2",
    __name__,
    landmark_gradient,
    make,
    moved_bytes,
    flops,
    TESTED + TIMED + COMPILED,
    compare_gradients,
)
