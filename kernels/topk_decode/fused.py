"""Attention to the rows that rank best: in one launch, or in three, for two halves of the sets at once.

Scores and attention wait for memory, the choice between them waits for its own arithmetic. Where sets are as many as
SMs, one launch does all three. Where they are more, they are halved, and each half goes through its stages on a stream
of its own: while one half is chosen from, the other is scored or attended to. Where they are so long, or long and
so few, that several blocks choose from each, scores tell these what they begin with.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R dims that rank, N sets, K width.
"""

import functools
from typing import NamedTuple

import torch

from ..gather_decode.fused import gather_decode
from ..lowrank_score.fused import lowrank_score, scores_told
from ..op import Reduce
from ..select_topk.fused import empty_choice, select_topk
from ..select_topk.joint.fused import board_words
from ..tiling import Plan, multiprocessors
from .cut import long_gather_plan, searched_jointly, whole_plan
from .whole.fused import whole_decode

# Scores below which a second stream costs more than it hides.
LEAST_SCORES = 1 << 20
# Of one block, on a Hopper GPU.
HOPPER_SHARED_BYTES = 227 * 1024
# Scores; what is told of them, and words that are cleared, where several blocks choose.
Scored = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class Part(NamedTuple):
    """Some of the sets.

    Attributes:
        texts: Of the batch.
        groups: KV heads.
        heads: Query heads.
        sets: Of one text.
    """

    texts: slice
    groups: slice
    heads: slice
    sets: slice


def topk_decode(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    rank_q_BHR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    wanted_B: torch.Tensor,
    width: int,
    scale: float,
    halves: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rank, choose and attend as the eager twin does.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys; any strides, the last dim contiguous.
        v_BGSD: (B, G, S, D) values; any strides, the last dim contiguous.
        rank_q_BHR: (B, H, R) queries that rank, the last dim contiguous.
        rank_k_BGSR: (B, G, S, R) keys that rank, the last dim contiguous.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max" or "sum" over the query heads of a KV head (N = G), or "none" (N = H).
        wanted_B: (B,) int32, rows wanted of each sequence.
        width: K.
        scale: Factor of the scores of the attention.
        halves: 1 or 2, in three launches each; chosen from the shape, as is one launch for all three, if 0.

    Returns:
        (B, H, D) attention, index_BNK and count_BN as the eager twin.

    Raises:
        ValueError: If `reduce` is none of the three, `width` is not positive, or rows are not contiguous.
    """
    if reduce not in ("max", "sum", "none"):
        raise ValueError(f"expected reduce among 'max', 'sum', 'none', got {reduce!r}")
    ranked, visible = (rank_q_BHR, rank_k_BGSR), (lo_B, hi_B)
    batch, groups, rows, dims = rank_k_BGSR.shape
    item_bytes, gpu = max(k_BGSD.element_size(), rank_k_BGSR.element_size()), q_BHD.device
    plan = whole_plan(batch * groups, rows, dims, q_BHD.shape[2], item_bytes, multiprocessors(gpu), shared_bytes(gpu))
    given = q_BHD, k_BGSD, v_BGSD, *ranked, *visible, reduce, wanted_B, width, scale
    if plan is None or halves or reduce == "none":
        return in_three_launches(*given, halves)
    return whole_decode(*given, plan)


def in_three_launches(
    q_BHD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    rank_q_BHR: torch.Tensor,
    rank_k_BGSR: torch.Tensor,
    lo_B: torch.Tensor,
    hi_B: torch.Tensor,
    reduce: Reduce,
    wanted_B: torch.Tensor,
    width: int,
    scale: float,
    halves: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rank, choose and attend, a launch for each; arguments, result and errors are those of `topk_decode`.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        rank_q_BHR: (B, H, R) queries that rank.
        rank_k_BGSR: (B, G, S, R) keys that rank.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max", "sum" or "none".
        wanted_B: (B,) int32, rows wanted of each sequence.
        width: K.
        scale: Factor of the scores of the attention.
        halves: 1 or 2; chosen from the shape if 0.

    Returns:
        (B, H, D) attention, index_BNK and count_BN.
    """
    (batch, groups, rows), heads, device = rank_k_BGSR.shape[:3], q_BHD.shape[1], q_BHD.device
    index_BNK, count_BN = empty_choice(batch, sets := heads if reduce == "none" else groups, max(1, width), device)
    first, *rest = parts_of(batch, groups, heads, sets, halves or halves_of(device, batch * sets, rows, reduce))
    own = None if rest else attend_plan(q_BHD, k_BGSD, v_BGSD, index_BNK, reduce)  # halves would leave SMs idle
    out_BHD = q_BHD.new_empty(q_BHD.shape)

    def score(part: Part) -> Scored:
        ranked = rank_q_BHR[part.texts, part.heads], rank_k_BGSR[part.texts, part.groups]
        return scores_of(*ranked, lo_B[part.texts], hi_B[part.texts], reduce)

    def attend(part: Part, scored: Scored) -> None:
        chosen = index_BNK[part.texts, part.sets], count_BN[part.texts, part.sets]
        select_topk(scored[0], wanted_B[part.texts], width, None, chosen, *scored[1:])
        cache = k_BGSD[part.texts, part.groups], v_BGSD[part.texts, part.groups]
        gather_decode(q_BHD[part.texts, part.heads], *cache, *chosen, scale, own, out_BHD[part.texts, part.heads])

    scored = score(first)
    if rest:
        # The second half is scored after the first, not beside it: else both would choose at the same time.
        (side := side_stream(device)).wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            attend(rest[0], score(rest[0]))
    attend(first, scored)
    if rest:
        torch.cuda.current_stream(device).wait_stream(side)
    return out_BHD, index_BNK, count_BN


def scores_of(
    q_BHR: torch.Tensor, k_BGSR: torch.Tensor, lo_B: torch.Tensor, hi_B: torch.Tensor, reduce: Reduce
) -> Scored:
    """Score some sets, and tell blocks that choose from one together what they begin with.

    Args:
        q_BHR: (B, H, R) queries that rank.
        k_BGSR: (B, G, S, R) keys that rank.
        lo_B: (B,) int32, first visible row.
        hi_B: (B,) int32, one past the last visible row.
        reduce: "max", "sum" or "none", of which nothing is told.

    Returns:
        Scores, what `scores_told` tells of them, and words that it has cleared.
    """
    batch, groups, rows = k_BGSR.shape[:3]
    jointly = searched_jointly(batch * groups, rows, reduce, multiprocessors(k_BGSR.device))
    if reduce == "none" or not jointly:
        return lowrank_score(q_BHR, k_BGSR, lo_B, hi_B, reduce), None, None
    board = torch.empty(board_words(batch * groups, rows, k_BGSR.device), dtype=torch.int64, device=k_BGSR.device)
    return *scores_told(q_BHR, k_BGSR, lo_B, hi_B, reduce, clear=board), board


def attend_plan(
    q_BHD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSD: torch.Tensor, index_BNK: torch.Tensor, reduce: Reduce
) -> Plan | None:
    """Cut the attention behind a choice.

    Args:
        q_BHD: (B, H, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        index_BNK: Rows of all sets.
        reduce: As `searched_jointly` has it.

    Returns:
        The plan; nothing where `gather_decode` has its own.
    """
    (batch, sets, width), device = index_BNK.shape, k_BGSD.device
    if not searched_jointly(batch * sets, k_BGSD.shape[2], reduce, multiprocessors(device)):
        return None
    dim, item_bytes = max(k_BGSD.shape[3], v_BGSD.shape[3]), k_BGSD.element_size()
    given = (batch * sets, q_BHD.shape[1] // sets, width, dim, item_bytes)
    return long_gather_plan(*given, multiprocessors(device), shared_bytes(device))


def parts_of(batch: int, groups: int, heads: int, sets: int, halves: int) -> list[Part]:
    """Cut the sets: by texts, or by the heads of the only text, so that each part of the results is contiguous.

    Args:
        batch: B.
        groups: G.
        heads: H.
        sets: N.
        halves: 1 or 2.

    Returns:
        As many parts; one where there is nothing to halve.
    """
    every = Part(slice(0, batch), slice(0, groups), slice(0, heads), slice(0, sets))
    if halves == 1 or batch * groups == 1:
        return [every]
    if batch > 1:
        return [every._replace(texts=texts) for texts in (slice(0, batch // 2), slice(batch // 2, batch))]
    middle = groups // 2
    bounds = ((0, middle), (middle, groups))
    return [
        Part(every.texts, *(slice(lo * size // groups, hi * size // groups) for size in (groups, heads, sets)))
        for lo, hi in bounds
    ]


def halves_of(device: torch.device, sets: int, rows: int, reduce: Reduce) -> int:
    """Choose how many parts of the sets go side by side.

    Two were faster where a choice takes several blocks of each SM, or several blocks a set that are told nothing; not
    where every SM has one block that chooses.

    Args:
        device: Where.
        sets: Of all texts.
        rows: S.
        reduce: As `scores_of` has it.

    Returns:
        1 or 2.
    """
    if device.type != "cuda" or sets * rows < LEAST_SCORES:
        return 1
    if searched_jointly(sets, rows, reduce, multiprocessors(device)):
        return 2 if reduce == "none" else 1
    return 2 if sets >= 2 * multiprocessors(device) else 1


def shared_bytes(device: torch.device) -> int:
    """Tell how much shared memory a block may have; a CPU stands for a Hopper GPU.

    Args:
        device: Where.

    Returns:
        Bytes; what any kernel may have, where torch does not tell what one may ask for.
    """
    if device.type != "cuda":
        return HOPPER_SHARED_BYTES
    told = torch.cuda.get_device_properties(device)
    return int(getattr(told, "shared_memory_per_block_optin", told.shared_memory_per_block))


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Give the stream of the second half: always the same one, since memory is kept for each stream.

    Args:
        device: A CUDA device.

    Returns:
        The stream.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
