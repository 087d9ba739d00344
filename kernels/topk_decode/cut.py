"""How one launch for scores, choice and attention is cut, who chooses from long rows, and the attention behind.

Shape legend: S rows in the cache, D head dim, R dims that rank, K width of the sets.
"""

from typing import NamedTuple

from ..op import Reduce
from ..select_topk.fused import MOST_ROWS
from ..select_topk.joint.fused import CHUNK_ROWS
from ..tiling import (
    GATHER_START_TILES,
    SCRATCH_BYTES,
    SHORT_ROWS,
    TILE_BYTES,
    Plan,
    attention_rows,
    fills,
    power_of_2,
)

# Rows above which several blocks choose faster from few sets than one from each: at 16448 there is no difference.
FEW_SETS_ROWS = 20480


class WholePlan(NamedTuple):
    """How one launch that scores, chooses and attends is cut.

    Attributes:
        block_rows: Power of two, at least S and 512, and below 65536.
        num_warps: Of a block.
        max_registers: Of a thread.
        score_rows: Rows of a tile of scores.
        score_stages: Its stages.
        attend_rows: Rows of a tile of attention.
        attend_stages: Its stages, half of which lie between an index and its rows.
    """

    block_rows: int
    num_warps: int
    max_registers: int
    score_rows: int
    score_stages: int
    attend_rows: int
    attend_stages: int


def searched_jointly(sets: int, rows: int, reduce: Reduce, multiprocessor_count: int) -> bool:
    """Tell whether several blocks choose from each set.

    Args:
        sets: Independent (sequence, set) pairs.
        rows: S.
        reduce: How heads share a set; of "none" blocks are told nothing of the scores, with which to begin.
        multiprocessor_count: SMs of the GPU.

    Returns:
        True for rows that one block cannot hold, and for few sets of long rows, whose blocks all find room at once, two
        on each SM, if scores tell them what they begin with.
    """
    room = sets * -(-rows // CHUNK_ROWS) <= 2 * multiprocessor_count
    return rows > MOST_ROWS or (rows > FEW_SETS_ROWS and room and reduce != "none")


def long_gather_plan(
    sets: int, group: int, rows: int, head_dim: int, item_bytes: int, multiprocessor_count: int, shared: int
) -> Plan | None:
    """Cut an attention kernel behind a choice from rows so long, and sets so few, that blocks choose jointly.

    Args:
        sets: Independent (sequence, set) pairs.
        group: Query heads that attend to a set.
        rows: K.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.
        shared: Bytes of shared memory that a block may have.

    Returns:
        One block an SM, of large tiles; nothing where that leaves SMs idle, tiles do not fit, or it has not been tried.
    """
    plan = Plan(2 * attention_rows(head_dim, item_bytes), multiprocessor_count // sets, num_warps=4, num_stages=6)
    # half of the stages hold indices, the others a tile of keys and one of values; queries stay
    held = plan.num_stages // 2 * 2 * plan.block_rows + max(16, power_of_2(group))
    tiles = held * power_of_2(head_dim) * item_bytes
    every_sm = plan.splits > 1 and plan.splits * sets >= multiprocessor_count * 7 // 8
    busy = rows >= plan.splits * GATHER_START_TILES * plan.block_rows
    return plan if item_bytes <= 2 and every_sm and busy and tiles + SCRATCH_BYTES <= shared else None


def whole_plan(
    sets: int, rows: int, dims: int, head_dim: int, item_bytes: int, multiprocessor_count: int, shared: int
) -> WholePlan | None:
    """Cut one launch that scores, chooses and attends, a block a set.

    Args:
        sets: Independent (sequence, KV head) pairs.
        rows: S.
        dims: R.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.
        shared: Bytes of shared memory that a block may have.

    Returns:
        The plan; nothing where three launches are as fast, or it has not been tried: but for as many sets as SMs, or a
        few less, of 8192 to 16384 rows, of products on the tensor cores, with tiles that shared memory holds.
    """
    if not fills(sets, multiprocessor_count) or not SHORT_ROWS < rows <= 2 * SHORT_ROWS or item_bytes > 2:
        return None
    # A block has its SM to itself: 64 scores and 255 registers a thread, 128 KiB on their way to shared memory.
    score_bytes, attend_bytes = (power_of_2(max(16, size)) * item_bytes for size in (dims, head_dim))
    score_rows = min(512, max(16, 2 * TILE_BYTES // score_bytes))
    attend_rows = min(128, 2 * attention_rows(head_dim, item_bytes))
    plan = WholePlan(2 * SHORT_ROWS, 8, 255, score_rows, 4, attend_rows, 6)
    # The two loops follow each other: one of keys, and one of keys and values, half of whose stages hold indices.
    tiles = max(plan.score_stages * score_rows * score_bytes, plan.attend_stages // 2 * 2 * attend_rows * attend_bytes)
    return plan if tiles + SCRATCH_BYTES <= shared else None
