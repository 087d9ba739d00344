"""The k-th and the (k+1)-th largest score of every causal row, a few rows at a time: where thresholds stand.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..many_rows import RowsCase, draw_first, draw_qkv
from ..op import Case, Comparison, Inputs, Op, compare_values
from . import eager
from .eager import kth_score

Borders = tuple[torch.Tensor, torch.Tensor]

TESTED = (
    RowsCase("mha_64", 2, 2, 2, 77, head_dim=64, kept=19, dtype="float32", reduce="none"),
    RowsCase("gqa3", 1, 6, 2, 61, head_dim=96, kept=33, dtype="float16", reduce="none"),
    RowsCase("gqa4_offset", 2, 8, 2, 90, head_dim=64, kept=7, queries=33, dtype="bfloat16", layout="padded"),
)
TIMED = tuple(
    RowsCase(f"b1_h32_g8_s{rows}_{reduce}", 1, 32, 8, rows, kept=rows // 4, reduce=reduce, visible="full",
             purpose="time")
    for rows in (8192, 32768) for reduce in ("max", "none")
) + tuple(
    RowsCase(f"b1_h32_g8_s{rows}_max", 1, 32, 8, rows, kept=rows // 4, visible="full", purpose="time")
    for rows in (65536, 131072)
)  # fmt: skip
COMPILED = (
    RowsCase("shared", 1, 8, 2, 256, kept=64, purpose="compile"),
    RowsCase("apart", 1, 3, 1, 256, head_dim=64, kept=64, reduce="none", dtype="float32", purpose="compile"),
    *(
        RowsCase("long", 1, 4, 1, 40000, queries=16, kept=64, dtype=dtype, purpose="compile")
        for dtype in ("bfloat16", "float32")
    ),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; budgets differ from row to row.

    Args:
        case: A `RowsCase`.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `kth_score`.
    """
    assert isinstance(case, RowsCase)
    drawn = draw_qkv(case, device, seed)
    row_T = torch.arange(case.new, device=device)
    k_BNT = (case.kept - row_T % 3 + torch.arange(case.sets, device=device)[:, None]).clamp(min=0)
    return {
        "q_BHTR": drawn["q_BHTD"],
        "k_BGSR": drawn["k_BGSD"],
        "k_BNT": k_BNT.int().expand(case.batch, -1, -1).contiguous(),
        "first_B": draw_first(case, device),
        "scale": case.head_dim**-0.5,
        "reduce": case.reduce,
    }


def compare_borders(
    inputs: Inputs, output: tuple[torch.Tensor, ...], reference: tuple[torch.Tensor, ...]
) -> Comparison:
    """Compare both scores of each row.

    Args:
        inputs: Not used by the values.
        output: The k-th and the next scores.
        reference: The same, float64.

    Returns:
        The worse of the two comparisons.
    """
    pairs = zip(output, reference, strict=True)
    return max(
        (compare_values(inputs, found, wanted) for found, wanted in pairs), key=lambda c: (bool(c.reason), c.error)
    )


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: queries and keys read once, budgets read and two scores written for each row.

    Args:
        case: A `RowsCase`.

    Returns:
        Bytes.
    """
    assert isinstance(case, RowsCase)
    elements = (case.q_heads * case.new + case.kv_heads * case.rows) * case.head_dim
    return case.batch * (elements * case.item_bytes + 12 * case.sets * case.new)


def flops(case: Case) -> int:
    """Count the operations of one product of all visible pairs; the search compares, and multiplies nothing.

    Args:
        case: A `RowsCase`.

    Returns:
        Floating-point operations.
    """
    assert isinstance(case, RowsCase)
    return 2 * case.batch * case.q_heads * case.pairs * case.head_dim


OP = Op("kth_score", "2", __name__, kth_score, make, moved_bytes, flops, TESTED + TIMED + COMPILED, compare_borders)


def border_of_ranks(rank_BNTS: torch.Tensor, k_BNT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the border of the k best of ranks that exist already; -inf and NaN are never kept.

    Args:
        rank_BNTS: (B, N, T, S) float32.
        k_BNT: (B, N, T) integers, how many of each row are kept.

    Returns:
        Two (B, N, T): the k-th largest, +inf where k < 1, and the next, -inf where there is none.
    """
    if not rank_BNTS.is_cuda:
        return eager.border(rank_BNTS.sort(-1, descending=True).values, k_BNT)
    from .stored.fused import border_of_ranks as fused  # noqa: PLC0415 - a machine without Triton can use the eager twin

    return fused(rank_BNTS, k_BNT)
