"""Approximate scores of every row from the largest components of the query (SparQ), and the rank of the rows.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R components.
"""

from dataclasses import replace

import torch

from ..drawn import asked, draw_cache
from ..op import Case, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw, draw_intervals
from .eager import sparq_score


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw the inputs of a case; some components of the queries stand out, as they do in models.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `sparq_score`.
    """
    lo_B, hi_B = draw_intervals(case, device, seed)
    q_BHD, k_BGDS = _by_component(case, device, seed)
    return {
        "q_BHD": q_BHD,
        "k_BGDS": k_BGDS,
        "lo_B": lo_B,
        "hi_B": hi_B,
        "local_B": torch.full_like(lo_B, max(1, case.kept // 4)),
        "components": case.low_dims,
        "scale": case.head_dim**-0.5,
    }


def _by_component(case: Case, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    if asked() is not None:
        drawn = draw_cache(case, device, seed)
        return drawn.q_BHD, drawn.k_BGSD.transpose(2, 3).contiguous()
    # magnitudes that fall with the component: what is largest is not left to the last bit
    fall_D = torch.linspace(2.0, 0.5, case.head_dim, device=device)
    q_BHD = draw((case.batch, case.q_heads, case.head_dim), replace(case, dtype="float32"), device, seed + 1)
    cache = (case.batch, case.kv_heads, case.head_dim, case.rows)
    return (q_BHD * fall_D).to(case.torch_dtype), draw(cache, case, device, seed + 2)


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: R of the D components of keys and the queries read, float32 ranks and scores written.

    Args:
        case: All of its rows count as visible.

    Returns:
        Bytes.
    """
    keys = case.kv_heads * case.rows * case.low_dims * case.item_bytes
    written = 4 * (case.kv_heads + case.q_heads) * case.rows
    return case.batch * (keys + case.q_heads * case.head_dim * case.item_bytes + written)


def flops(case: Case) -> int:
    """Count the operations of the matrix product.

    Args:
        case: All of its rows count as visible.

    Returns:
        Operations.
    """
    return 2 * case.batch * case.q_heads * case.rows * case.low_dims


OP = Op("sparq_score", "2", __name__, sparq_score, make, moved_bytes, flops, CASES, compare_all)
