"""How the attention behind a choice from long rows is cut, where its sets are few.

Shape legend: S rows in the cache, D head dim, K width of the sets.
"""

from ..tiling import GATHER_START_TILES, SCRATCH_BYTES, Plan, attention_rows, power_of_2


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
    fills = plan.splits > 1 and plan.splits * sets >= multiprocessor_count * 7 // 8
    busy = rows >= plan.splits * GATHER_START_TILES * plan.block_rows
    return plan if item_bytes <= 2 and fills and busy and tiles + SCRATCH_BYTES <= shared else None
