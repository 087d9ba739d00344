"""The attention that each key gets from all query rows and the heads of its group: what H2O ranks rows by.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Inputs, Op
from . import eager
from .eager import column_sums

TESTED = (
    RowsCase("mha_64", 2, 2, 2, 77, head_dim=64, dtype="float32"),
    RowsCase("gqa3_96", 1, 3, 1, 140, head_dim=96, dtype="float16"),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, queries=33, dtype="bfloat16", layout="padded"),
)
TIMED = tuple(
    RowsCase(f"b1_h32_g8_s{rows}", 1, 32, 8, rows, visible="full", purpose="time") for rows in (8192, 32768, 131072)
)
COMPILED = (
    RowsCase("gqa4", 1, 8, 2, 256, purpose="compile"),
    RowsCase("mha", 1, 2, 2, 256, head_dim=96, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case.

    Args:
        case: A `RowsCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `column_sums`.
    """
    assert isinstance(case, RowsCase)
    inputs = draw_qkv(case, device, seed)
    inputs.pop("v_BGSD")
    return inputs | {"first_B": draw_first(case, device), "scale": case.head_dim**-0.5}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries and keys read in both passes, a sum for each row and each key.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    elements = 2 * (case.q_heads * case.new + case.kv_heads * case.rows) * case.head_dim
    return case.batch * (elements * case.item_bytes + 8 * case.q_heads * case.new + 4 * case.kv_heads * case.rows)


def flops(case: Case) -> int:
    """Count the operations of the two passes, one product each: as many as attention has.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 4 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op("column_sums", "1", __name__, column_sums, make, moved_bytes, flops, TESTED + TIMED + COMPILED)


def row_sums(q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, first_B: torch.Tensor, scale: float) -> torch.Tensor:
    """Give the log of each causal row's sum of exp(scores): the first of the two passes.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        first_B: (B,) int32, first row that is no padding.
        scale: Factor of the scores.

    Returns:
        (B, H, T), at least float32; -inf for padding.
    """
    if not q_BHTD.is_cuda:
        return eager.row_sums(q_BHTD, k_BGSD, first_B, scale)
    from .fused import row_sums as fused_row_sums  # noqa: PLC0415 - a machine without Triton can use the eager twin

    return fused_row_sums(q_BHTD, k_BGSD, first_B, scale)
