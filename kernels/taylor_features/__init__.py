"""Features of the second-order Taylor map on a projection: 1, the components, and each pair of them once.

Shape legend: B batch, G KV heads, N rows, D head dim, W width of the projection, F features.
"""

import torch

from ..op import Case, Inputs, Op
from ..visible import draw
from .eager import taylor_features

TESTED = (
    Case("w16", 2, 2, 2, 19, head_dim=64, low_dims=16, dtype="float32"),
    Case("w9_96", 1, 3, 1, 33, head_dim=96, low_dims=9, dtype="float16"),
    Case("whole_24", 2, 2, 2, 5, head_dim=24, low_dims=24, dtype="float32"),
    Case("step", 2, 8, 2, 1, head_dim=128, low_dims=16, dtype="bfloat16"),
    Case("many", 1, 2, 2, 70, head_dim=24, low_dims=16, dtype="float32"),
)
TIMED = tuple(
    Case(f"b{batch}_g{groups}_n{rows}_w16", batch, groups, groups, rows, low_dims=16, dtype="float32", visible="full",
         purpose="time") for batch, groups, rows in ((16, 8, 1), (16, 8, 4), (1, 8, 16384))
)  # fmt: skip
COMPILED = (
    Case("w16", 1, 2, 2, 64, low_dims=16, purpose="compile"),
    Case("whole", 1, 2, 2, 64, head_dim=64, low_dims=64, dtype="float32", purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw rows, and an orthonormal projection where F is not of all dims.

    Args:
        case: Its shape; `rows` is N, `low_dims` W.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `taylor_features`.
    """
    wide, dim = case.low_dims, case.head_dim
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(case.kv_heads, dim, wide if wide < dim else 0, generator=generator)
    return {
        "x_BGND": draw((case.batch, case.kv_heads, case.rows, dim), case, device, seed),
        "projection_GDW": (torch.linalg.qr(drawn).Q if wide < dim else drawn).to(device),
    }


def features_of(case: Case) -> int:
    """Count the features of a row.

    Args:
        case: Its shape.

    Returns:
        F.
    """
    return 1 + case.low_dims + case.low_dims * (case.low_dims + 1) // 2


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: rows and the projection read, float32 features written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    projection = case.head_dim * case.low_dims if case.low_dims < case.head_dim else 0
    rows = case.batch * case.rows * (case.head_dim * case.item_bytes + 4 * features_of(case))
    return case.kv_heads * (rows + 4 * projection)


def flops(case: Case) -> int:
    """Count the projection's product, and one multiplication for each pair.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    product = 2 * case.head_dim * case.low_dims if case.low_dims < case.head_dim else 0
    return case.batch * case.kv_heads * case.rows * (product + features_of(case))


OP = Op("taylor_features", "3", __name__, taylor_features, make, moved_bytes, flops, TESTED + TIMED + COMPILED)
