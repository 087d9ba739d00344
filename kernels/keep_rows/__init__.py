"""Rows that survive an eviction moved to the beginning of their cache, in place: keys, values, and what lies beside.

Shape legend: B batch, G KV heads, S rows in the cache, D, W widths of a row, N = 1 or G sets of rows, K rows kept.
"""

import torch

from ..op import Case, Inputs, Op, compare_all
from ..shapes import CASES
from ..visible import draw
from .eager import keep_rows


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw keys, values, a mark of each row, and ascending rows; ragged sets begin with holes, some with more of them.

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
    rows = (case.batch, case.kv_heads, case.rows)
    return {
        "k_BGSD": draw((*rows, case.head_dim), case, device, seed + 1),
        "v_BGSD": draw((*rows, case.head_dim), case, device, seed + 2),
        "more_BGSW": torch.randn(*rows, 1, generator=generator, device=device),
        "index_BNK": index_BNK.sort(-1).values,
    }


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: kept rows, marks and their numbers read, rows and marks written.

    Args:
        case: Its shape.

    Returns:
        Bytes.
    """
    rows = case.batch * case.kv_heads * case.kept
    return rows * (4 * case.head_dim * case.item_bytes + 2 * 4 + 8)


def flops(case: Case) -> int:
    """Count nothing: rows are moved.

    Args:
        case: Its shape.

    Returns:
        Zero.
    """
    del case
    return 0


WRITTEN = ("k_BGSD", "v_BGSD", "more_BGSW")
OP = Op("keep_rows", "3", __name__, keep_rows, make, moved_bytes, flops, CASES, compare=compare_all, writes=WRITTEN)
