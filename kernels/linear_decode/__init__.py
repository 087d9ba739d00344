"""One row that leaves added to a linear state, and the state joined with exact attention by logs of their weights.

Shape legend: B batch, H query heads, G KV heads, F features, D head dim.
"""

import torch

from ..op import Case, Inputs, Op, compare_all
from ..visible import draw
from .eager import linear_decode

TESTED = (
    Case("mha_64", 2, 2, 2, 1, head_dim=64, low_dims=64, dtype="float32"),
    Case("gqa3_96", 2, 3, 1, 1, head_dim=96, low_dims=153, dtype="float16"),
    Case("gqa4_128", 2, 8, 2, 1, head_dim=128, low_dims=257, dtype="bfloat16"),
    Case("gqa8_128", 3, 16, 2, 1, head_dim=128, low_dims=40, dtype="bfloat16"),
    Case("gqa8_24", 1, 8, 1, 1, head_dim=24, low_dims=9, dtype="bfloat16"),
)
# Batch, query heads, KV heads, features: taylor of width 16, elu, ratchet; the length of a text costs nothing.
TIMED = tuple(
    Case(f"b{batch}_h{heads}_g{groups}_f{features}", batch, heads, groups, 1, low_dims=features, visible="full",
         purpose="time")
    for batch, heads, groups in ((16, 32, 8), (16, 40, 40), (1, 32, 8)) for features in (153, 128, 257)
)  # fmt: skip
COMPILED = (
    Case("gqa4", 1, 8, 2, 1, low_dims=153, purpose="compile"),
    Case("gqa4_long", 1, 8, 2, 1, low_dims=257, purpose="compile"),
    Case("gqa8", 1, 16, 2, 1, low_dims=153, purpose="compile"),
    Case("gqa8_long", 1, 16, 2, 1, low_dims=257, purpose="compile"),
    Case("gqa32", 1, 32, 1, 1, low_dims=153, purpose="compile"),
    Case("mha", 1, 2, 2, 1, head_dim=96, low_dims=128, dtype="float32", purpose="compile"),
    Case("many", 2, 2, 2, 1, low_dims=153, purpose="compile"),
)


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw positive features, factors, a state and what exact attention found.

    Args:
        case: Its shape; `low_dims` is F. In ragged cases the last sequence has no exact rows, its last head no state,
            and of the first sequence no row leaves.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `linear_decode`.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    queries, keys = (case.batch, case.q_heads), (case.batch, case.kv_heads)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device)

    state, norm = normal(*keys, case.low_dims, case.head_dim), normal(*keys, case.low_dims).abs()
    k_log, scale, exact_log = 3 * normal(*keys), 3 * normal(*keys), 5 * normal(*queries) + 5
    if case.visible == "ragged":
        k_log[0], exact_log[-1], scale[-1, -1] = -torch.inf, -torch.inf, -torch.inf
    return {
        "q_BHF": draw((*queries, case.low_dims), case, device, seed + 1).abs(),
        "q_log_BH": normal(*queries),
        "k_BGF": draw((*keys, case.low_dims), case, device, seed + 2).abs(),
        "k_log_BG": k_log,
        "v_BGD": draw((*keys, case.head_dim), case, device, seed + 3),
        "state_BGFD": state,
        "norm_BGF": norm,
        "scale_BG": scale,
        "exact_BHD": normal(*queries, case.head_dim),
        "exact_log_BH": exact_log,
        **({"age": "settled"} if case.purpose == "time" else {}),
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: the state read and written, features, exact and joined means.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    state = 8 * case.kv_heads * case.low_dims * (case.head_dim + 1)
    features = (case.q_heads + case.kv_heads) * case.low_dims * case.item_bytes
    return case.batch * (state + features + case.q_heads * (8 * case.head_dim + 8))


def flops(case: Case) -> int:
    """Count the operations: the row added, and one product of the queries with the state.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    each = (2 * case.q_heads + 3 * case.kv_heads) * case.low_dims
    return case.batch * each * (case.head_dim + 1)


OP = Op("linear_decode", "5", __name__, linear_decode, make, moved_bytes, flops, TESTED + TIMED + COMPILED, compare_all,
        ("state_BGFD",))  # fmt: skip
