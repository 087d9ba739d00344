"""Approximate scores of every row from the largest components of the query (SparQ).

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R components, X parts of the rows.
"""

from dataclasses import replace

import torch

from ..drawn import asked, draw_cache
from ..op import Case, Comparison, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw, draw_intervals
from .eager import joined_parts, sparq_score


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
    """Count the fewest bytes: R of the D components of keys and the queries read, float32 scores written.

    Args:
        case: All of its rows count as visible; the parts, eight bytes of each, do not count.

    Returns:
        Bytes.
    """
    keys = case.kv_heads * case.rows * case.low_dims * case.item_bytes
    written = 4 * case.q_heads * case.rows
    return case.batch * (keys + case.q_heads * case.head_dim * case.item_bytes + written)


def flops(case: Case) -> int:
    """Count the operations of the matrix product.

    Args:
        case: All of its rows count as visible.

    Returns:
        Operations.
    """
    return 2 * case.batch * case.q_heads * case.rows * case.low_dims


def compare(
    inputs: Inputs, output: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> Comparison:
    """Compare the scores, and what the parts say together: how many there are is a matter of the plan.

    Args:
        inputs: Not used.
        output: score_BHS and part_BHX2.
        reference: The same of the reference.

    Returns:
        The larger difference of scores, or of the logs of the sums of exp(score).
    """
    mine, theirs = ((score_BHS, joined_parts(part_BHX2)) for score_BHS, part_BHX2 in (output, reference))
    return compare_all(inputs, mine, theirs)


OP = Op("sparq_score", "3", __name__, sparq_score, make, moved_bytes, flops, CASES, compare)
