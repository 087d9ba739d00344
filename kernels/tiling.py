"""How the work of a kernel is cut for one GPU: pure functions of the shape, so that nothing is tuned at run time.

Shape legend: S rows, D dims of a row.
"""

from typing import NamedTuple

import torch

# Row tiles of this size, a few deep for K and V, leave two or three blocks on a Hopper SM with over 100 KiB in flight.
TILE_BYTES = 16384
# Filling the pipeline and writing the partial result cost about as much as this many tiles.
START_TILES, GATHER_START_TILES = 1, 4
# Rows up to which tiles of scores stay small, rows for which a block that chooses by thresholds is worth its start, and
# rows of which one that attends to those chosen is.
SHORT_ROWS, SEGMENT_ROWS = 8192, 1920
# Scores of a set from which a choice makes its first guesses: fewer guess worse, more are searched longer.
LEAST_SAMPLE, MOST_SAMPLE = 512, 2048
# Rows of a tile whose weights are summed: four warps have registers for so many, and four tiles are a bundle.
THETA_ROWS = 128
# Shared memory that a pipeline's tiles leave to indices and reductions.
SCRATCH_BYTES = 12 * 1024


class Plan(NamedTuple):
    """How one kernel is cut.

    Attributes:
        block_rows: Rows of a tile.
        splits: Blocks that share the rows of one (sequence, head).
        num_warps: Warps of a block.
        num_stages: Tiles in flight.
    """

    block_rows: int
    splits: int
    num_warps: int
    num_stages: int


class SelectPlan(NamedTuple):
    """How a selection by one block is cut.

    Attributes:
        num_warps: Warps of a block.
        sample_rows: Rows that the first guesses are made from, a power of two.
    """

    num_warps: int
    sample_rows: int


def power_of_2(number: int) -> int:
    """Round up to a power of two, as tile shapes must be.

    Args:
        number: At least 1.

    Returns:
        The smallest power of two that is not less.
    """
    return 1 << (number - 1).bit_length()


def multiprocessors(device: torch.device) -> int:
    """Count the SMs; a CPU, under the interpreter, stands for a very small GPU.

    Args:
        device: Where the kernel runs.

    Returns:
        The count.
    """
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def choose_splits(pairs: int, tiles: int, slots: int, start_tiles: int = START_TILES) -> int:
    """Choose how many blocks share a row of tiles: the least time, counted in tiles, over whole waves.

    Args:
        pairs: Independent (sequence, head) pairs.
        tiles: Tiles of one pair.
        slots: Blocks that the GPU holds at once.
        start_tiles: What a block costs besides its tiles.

    Returns:
        Splits of one pair, at most 128 and at least two tiles each.
    """

    def time(splits: int) -> int:
        waves = -(-pairs * splits // slots)
        return waves * (-(-tiles // splits) + start_tiles)

    return min(range(1, max(2, min(128, tiles // 2) + 1)), key=time)


def attention_plan(pairs: int, rows: int, head_dim: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut an attention kernel, which holds a tile of K and one of V in each stage.

    Args:
        pairs: Independent (sequence, head) pairs.
        rows: Rows of one pair.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    block_rows = attention_rows(head_dim, item_bytes)
    if pairs >= 2 * multiprocessor_count and 16 < block_rows < 128:
        # Enough pairs for all SMs: one large block on each, which streams a whole pair, is 1 to 3% faster.
        return Plan(2 * block_rows, choose_splits(pairs, -(-rows // (2 * block_rows)), multiprocessor_count), 8, 3)
    # Four stages are three buffers of 32 KiB: two blocks share the 227 KiB of an SM.
    splits = choose_splits(pairs, -(-rows // block_rows), 2 * multiprocessor_count)
    return Plan(block_rows, splits, num_warps=4, num_stages=4)


def fills(pairs: int, multiprocessor_count: int) -> bool:
    """Whether each pair has an SM to itself, and few SMs have none.

    Args:
        pairs: Independent pairs.
        multiprocessor_count: SMs of the GPU.

    Returns:
        True if so.
    """
    return multiprocessor_count * 7 // 8 <= pairs <= multiprocessor_count


def gather_plan(pairs: int, rows: int, head_dim: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut an attention kernel whose rows are named by an index.

    Args:
        pairs: Independent (sequence, set) pairs.
        rows: K.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    # Blocks of one warp leave less to wait for: each SM holds three, with two tiles of 16 KiB each, as half of the
    # stages lie between an index and its rows.
    block_rows = max(16, attention_rows(head_dim, item_bytes) // 2)
    splits = choose_splits(pairs, -(-rows // block_rows), 3 * multiprocessor_count, GATHER_START_TILES)
    # Products in float32 are on the CUDA cores, and wide rows need more registers than one warp has.
    num_warps = 4 if item_bytes > 2 else max(1, power_of_2(head_dim) // 128)
    return Plan(block_rows, splits, num_warps, num_stages=6)


def even_plan(plan: Plan, pairs: int, rows: int, multiprocessor_count: int) -> Plan:
    """Cut an attention kernel whose blocks share the tiles of a set evenly, however many rows passed a threshold.

    Args:
        plan: How it would be cut if all rows had passed.
        pairs: Independent (sequence, set) pairs.
        rows: Of a set, at most.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan, of four blocks an SM, or one a set where sets are more but all run at once: an SM holds six of them,
        with two tiles of 16 KiB each.
    """
    if pairs > 6 * multiprocessor_count:
        return plan
    most = -(-rows // (GATHER_START_TILES * plan.block_rows))
    return plan._replace(splits=max(1, min(most, 4 * multiprocessor_count // pairs)))


def attention_rows(head_dim: int, item_bytes: int) -> int:
    """Count the rows of a tile of K or V.

    Args:
        head_dim: D.
        item_bytes: Bytes of one element.

    Returns:
        A power of two from 16, which matrix instructions need, to 128.
    """
    return min(128, max(16, TILE_BYTES // (power_of_2(head_dim) * item_bytes)))


def score_plan(pairs: int, rows: int, dims: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut a scoring kernel, which holds one tile in each stage.

    Args:
        pairs: Independent (sequence, head) pairs.
        rows: Rows of one pair.
        dims: R.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    # Large tiles pay only where every SM has many of them.
    large = rows > SHORT_ROWS and pairs >= 2 * multiprocessor_count
    most_rows, tile_bytes = (512, 2 * TILE_BYTES) if large else (256, TILE_BYTES)
    block_rows = min(most_rows, max(16, tile_bytes // (power_of_2(max(16, dims)) * item_bytes)))
    splits = choose_splits(pairs, -(-rows // block_rows), 3 * multiprocessor_count)
    return Plan(block_rows, splits, num_warps=8 if large else 4, num_stages=3)


def theta_plan(dims: int, item_bytes: int) -> Plan:
    """Cut a scoring kernel that also sums weights, which take as many registers as the scores of a tile.

    Args:
        dims: R.
        item_bytes: Bytes of one element.

    Returns:
        The plan; its splits are not used, as segments share the rows.
    """
    row_bytes = power_of_2(max(16, dims)) * item_bytes
    block_rows = min(THETA_ROWS, max(16, TILE_BYTES // row_bytes))
    return Plan(block_rows, 1, num_warps=4, num_stages=3 if 2 * block_rows * row_bytes >= TILE_BYTES else 4)


def theta_segments(pairs: int, rows: int, chosen: Plan, multiprocessor_count: int) -> int:
    """Choose how many blocks share the rows of a set that thresholds choose from.

    Args:
        pairs: Independent (sequence, set) pairs.
        rows: S.
        chosen: How attention over as many rows as are expected, without segments, is cut.
        multiprocessor_count: SMs of the GPU.

    Returns:
        Four blocks an SM where each then has enough rows; else as many as that attention has.
    """
    most = max(1, 4 * multiprocessor_count // pairs)
    return most if rows >= most * SEGMENT_ROWS else chosen.splits


def body_and_rest(rows: int) -> tuple[int, int]:
    """Cover rows by two powers of two: a cache has a few rows more than the prompt that its length was meant for.

    Args:
        rows: S.

    Returns:
        The larger, and the smaller or 0: together at least S, and not much more where S is a little above a power.
    """
    whole = max(16, power_of_2(rows))
    half = whole // 2
    rest = max(16, power_of_2(max(1, rows - half)))
    return (half, rest) if half >= 16 and rows > half and rest <= half // 4 else (whole, 0)


def select_plan(block_rows: int) -> SelectPlan:
    """Cut a selection by one block.

    Args:
        block_rows: The power of two that covers the rows, or most of them; at most 32768.

    Returns:
        The plan.
    """
    # 32 scores for each thread, or 64 in long rows: few warps wait less for each other at every step of the search.
    num_warps = max(4, block_rows // (1024 if block_rows <= SHORT_ROWS else 2048))
    return SelectPlan(num_warps, min(MOST_SAMPLE, max(LEAST_SAMPLE, block_rows // 16)))
