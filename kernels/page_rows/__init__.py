"""Rows of the pages that were chosen, and of the page being written, as an index that attention gathers by.

Shape legend: B batch, N sets of pages, J pages wanted at most, K = (J + 1) page rows, P pages of the cache.
"""

from dataclasses import replace

import torch

from ..op import Case, Comparison, Inputs, Op, compare_all
from ..select_topk.eager import select_topk
from ..shapes import CASES
from ..visible import draw_intervals, visible_rows
from .eager import page_rows


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw texts, and the best of random bounds of the pages before each text's last; in ragged cases fewer fit.

    Args:
        case: Its shape; pages of 16 rows, or of 4 in a ragged case.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `page_rows`.
    """
    page = 16 if case.visible == "full" else 4
    lo_B, hi_B = draw_intervals(case, device, seed)
    own_B = (hi_B - lo_B - 1).clamp(min=0) // page
    generator = torch.Generator(device=device).manual_seed(seed)
    bounds = torch.randn(case.batch, case.sets, -(-case.rows // page), generator=generator, device=device)
    bounds = bounds.masked_fill(~visible_rows(torch.zeros_like(own_B), own_B, bounds.shape[2]), -torch.inf)
    width = max(1, case.kept // page)
    room_B = torch.full_like(own_B, width)
    if case.visible == "ragged":
        room_B -= torch.arange(case.batch, dtype=torch.int32, device=device) % 2
    index_BNJ, count_BN = select_topk(bounds, room_B, width)
    return {"index_BNJ": index_BNJ, "count_BN": count_BN, "context_B": hi_B - lo_B, "first_B": lo_B, "page": page}


def compare_rows(
    inputs: Inputs, output: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]
) -> Comparison:
    """Compare rows and counts, which are exact.

    Args:
        inputs: Not used.
        output: Of a twin.
        reference: Of the eager twin.

    Returns:
        The comparison.
    """
    found, wanted = (tuple(part.double() for part in parts) for parts in (output, reference))
    return replace(compare_all(inputs, found, wanted), scale=0.0)  # what is exact has no tolerance


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: int32 pages and counts read, int32 rows and counts written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    page = 16 if case.visible == "full" else 4
    pages = max(1, case.kept // page)
    return 4 * case.batch * (case.sets * (pages + (pages + 1) * page + 2) + 2)


def flops(case: Case) -> int:
    """Count nothing: places are not arithmetic.

    Args:
        case: Its shape.

    Returns:
        Zero.
    """
    del case
    return 0


OP = Op("page_rows", "1", __name__, page_rows, make, moved_bytes, flops, CASES, compare_rows)
