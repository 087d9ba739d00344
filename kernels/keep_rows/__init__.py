"""Rows that survive an eviction moved to the beginning of their cache, in place.

Shape legend: B batch, G KV heads, S rows in the cache, W width of a row, N = 1 or G sets of rows, K rows kept.
"""

import torch

from ..op import Case, Inputs, Op
from ..shapes import CASES
from ..visible import draw
from .eager import keep_rows


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw a cache and ascending rows; in ragged cases sets begin with holes, more in some than in others.

    Args:
        case: Its shape; one set for all heads where its scores are summed.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `keep_rows`.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    sets, kept = 1 if case.reduce == "sum" else case.kv_heads, min(case.kept, case.rows)
    rank_BNS = torch.rand(case.batch, sets, case.rows, generator=generator, device=device)
    index_BNK = rank_BNS.topk(kept, dim=-1).indices
    if case.visible == "ragged":
        holes_BN = torch.randint(0, kept // 2 + 1, (case.batch, sets), generator=generator, device=device)
        index_BNK = index_BNK.masked_fill(torch.arange(kept, device=device) < holes_BN[..., None], -1)
    rows_BGSW = draw((case.batch, case.kv_heads, case.rows, case.head_dim), case, device, seed + 1)
    return {"rows_BGSW": rows_BGSW, "index_BNK": index_BNK.sort(-1).values}


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: kept rows and their numbers read, the rows written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    rows = case.batch * case.kv_heads * case.kept
    return rows * (2 * case.head_dim * case.item_bytes + 8)


def flops(case: Case) -> int:
    """Count nothing: rows are moved.

    Args:
        case: Its shape.

    Returns:
        Zero.
    """
    del case
    return 0


OP = Op("keep_rows", "2", __name__, keep_rows, make, moved_bytes, flops, CASES, writes=("rows_BGSW",))
