"""How many keys of each causal row rank above the threshold of the row.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, R dims of the
ranks, N sets of rows.
"""

import math
from typing import cast

import torch

from ..many_rows import RowsCase
from ..op import Case, Comparison, Inputs, Op
from ..threshold_prefill import make as make_thresholds
from .eager import rank_counts

TESTED = (
    RowsCase("mha_64", 2, 2, 2, 77, head_dim=64, low_dims=64, kept=19, dtype="float32", reduce="none"),
    RowsCase("gqa3_lowrank", 1, 6, 2, 61, head_dim=96, low_dims=24, kept=33, dtype="float16"),
    RowsCase("gqa3_apart", 1, 6, 2, 61, head_dim=96, low_dims=24, kept=33, dtype="float16", reduce="none"),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, low_dims=64, kept=7, queries=33, dtype="bfloat16",
             layout="padded"),
)  # fmt: skip
TIMED = tuple(
    RowsCase(f"b1_h{heads}_g{groups}_s32768_r{dims}", 1, heads, groups, 32768, head_dim=4 * dims, low_dims=dims,
             kept=8192, visible="full", purpose="time")
    for heads, groups, dims in ((32, 8, 32), (6, 3, 16))
)  # fmt: skip
COMPILED = (
    RowsCase("lowrank", 1, 8, 2, 256, low_dims=32, kept=64, purpose="compile"),
    RowsCase("apart", 1, 3, 1, 256, head_dim=64, low_dims=64, kept=64, reduce="none", dtype="float32",
             purpose="compile"),
)  # fmt: skip


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case as `threshold_prefill` does.

    Args:
        case: A `RowsCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `rank_counts`.
    """
    names = ("rank_q_BHTR", "rank_k_BGSR", "threshold_BNT", "first_B", "scale", "reduce")
    drawn = make_thresholds(case, device, seed)
    return {name: drawn[name] for name in names}


def compare_counts(inputs: Inputs, output: torch.Tensor, reference: torch.Tensor) -> Comparison:
    """Compare counts; a rank at the threshold to the last bit may fall on either side: one key in a million may.

    Args:
        inputs: Not used.
        output: Of a twin.
        reference: Of the eager twin, float64.

    Returns:
        The comparison.
    """
    del inputs
    apart = int((output.long() - reference.long()).abs().sum())
    if apart > 1e-6 * int(reference.sum()):
        return Comparison(math.inf, 0.0, f"{apart} rows more or less of {int(reference.sum())}")
    return Comparison(0.0, 1.0)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries and keys read once, thresholds read, counts written.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    rows = cast("RowsCase", case)
    elements = (rows.q_heads * rows.new + rows.kv_heads * rows.rows) * rows.low_dims
    return rows.batch * (elements * rows.item_bytes + 8 * rows.sets * rows.new)


def flops(case: Case) -> int:
    """Count the operations of one product of all visible pairs.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    rows = cast("RowsCase", case)
    return 2 * rows.batch * rows.q_heads * rows.pairs * rows.low_dims


OP = Op("rank_counts", "1", __name__, rank_counts, make, moved_bytes, flops, TESTED + TIMED + COMPILED, compare_counts)
