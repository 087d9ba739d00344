"""Decode attention over chosen rows: one query token of each sequence against the rows that an index names.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, N = G or H sets of rows, K kept.
"""

from dataclasses import replace

import torch

from ..drawn import asked, draw_cache
from ..lowrank_score import OP as LOWRANK_SCORE
from ..op import Case, Inputs, Op
from ..shapes import CASES
from .eager import gather_decode


def make(case: Case, device: torch.device, seed: int) -> Inputs:
    """Draw a cache and ascending random rows; in ragged cases the last set is empty and others are cut short.

    Args:
        case: Its shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The arguments of `gather_decode`.
    """
    index_BNK, count_BN = _draw_sets(case, device, seed)
    chosen = {"index_BNK": index_BNK, "count_BN": count_BN, "scale": case.head_dim**-0.5}
    return draw_cache(case, device, seed)._asdict() | chosen


def _draw_sets(case: Case, device: torch.device, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device=device).manual_seed(seed)
    shape = (case.batch, case.sets, case.rows)
    kept = min(case.kept, case.rows)
    rank_BNS = torch.rand(shape, generator=generator, device=device)
    if asked() is not None:  # rows that a query chooses lie together
        rank_BNS = LOWRANK_SCORE(*LOWRANK_SCORE.make(replace(case, visible="full"), device, seed).values())
    chosen_BNK = rank_BNS.topk(kept, dim=-1).indices.sort(-1).values.to(torch.int32)
    count_BN = torch.full(shape[:2], kept, dtype=torch.int32, device=device)
    if case.visible == "ragged":
        count_BN -= torch.arange(case.sets, dtype=torch.int32, device=device) % 3
        count_BN = count_BN.clamp_min(0)
        if case.batch > 1:
            count_BN[-1, -1] = 0
    index_BNK = torch.full((*shape[:2], case.kept), -1, dtype=torch.int32, device=device)
    valid_BNK = torch.arange(kept, device=device) < count_BN[..., None]
    index_BNK[..., :kept] = torch.where(valid_BNK, chosen_BNK, -1)
    return index_BNK, count_BN


def moved_bytes(case: Case) -> int:
    """Count the fewest bytes: chosen rows of K and V read once for each set, indices and queries read, output written.

    Args:
        case: Its shape; where sets of one KV head overlap, a cache may save some of this.

    Returns:
        Bytes.
    """
    rows = case.batch * case.sets * case.kept
    heads = 2 * case.batch * case.q_heads * case.head_dim
    return 2 * rows * case.head_dim * case.item_bytes + 4 * rows + heads * case.item_bytes


def flops(case: Case) -> int:
    """Count the operations of the two matrix products.

    Args:
        case: Its shape.

    Returns:
        Floating-point operations.
    """
    return 4 * case.batch * case.q_heads * case.kept * case.head_dim


OP = Op("gather_decode", "2", __name__, gather_decode, make, moved_bytes, flops, CASES)
