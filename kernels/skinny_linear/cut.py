"""How a product of few tokens with a large weight is cut: an even share of the weight's rows for every block.

Shape legend: B tokens, E inputs, F outputs.
"""

from typing import NamedTuple

from ..tiling import power_of_2

# Rows that a block has at the most; a tile of them is as high as the next power of two, and the rest of it is not read.
HALF_ROWS, MOST_ROWS = 64, 128
TILE_NUMBERS = 8192  # of a tile, where an SM has two blocks
SHARED_BYTES = 224 * 1024  # of an SM, for all its blocks
FEWEST_TOKENS, MOST_TOKENS = 16, 64  # of a tile: what matrix instructions need, and what registers hold


class SkinnyPlan(NamedTuple):
    """How the weight is cut.

    Attributes:
        rows: Rows of the weight that a block multiplies.
        block_rows: Power of two, at least `rows`.
        block_inputs: Inputs of a tile.
        num_warps: Warps of a block.
        num_stages: Tiles in flight.
        fetch_bytes: What each thread fetches into L2 of the weight's rows while the kernel before still runs.
        splits: Blocks that share the inputs of some rows; each then leaves its part of the sum.
    """

    rows: int
    block_rows: int
    block_inputs: int
    num_warps: int
    num_stages: int
    fetch_bytes: int
    splits: int = 1


def skinny_plan(tokens: int, outputs: int, item_bytes: int, multiprocessor_count: int) -> SkinnyPlan:
    """Cut a product.

    Args:
        tokens: B.
        outputs: F.
        item_bytes: Bytes of one element of the weight.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan: one block an SM, or two where each then has more than half a tile.
    """
    if item_bytes > 2:  # products in float32 are on the CUDA cores
        return SkinnyPlan(32, 32, 32, 4, 2, 0)
    if outputs <= HALF_ROWS * multiprocessor_count:
        rows = -(-outputs // multiprocessor_count)
        return SkinnyPlan(rows, HALF_ROWS, 256, 4, stages(HALF_ROWS, 256, tokens, SHARED_BYTES), 1024)
    slots = 2 * multiprocessor_count
    rows = -(-outputs // (slots * -(-outputs // (slots * MOST_ROWS))))
    block_rows = max(HALF_ROWS, power_of_2(rows))
    block_inputs = TILE_NUMBERS // block_rows
    fit = stages(block_rows, block_inputs, tokens, SHARED_BYTES // 2)
    return SkinnyPlan(rows, block_rows, block_inputs, 4, fit, 1024)


def tile_tokens(tokens: int) -> int:
    """Count the tokens of a tile.

    Args:
        tokens: B.

    Returns:
        A power of two.
    """
    return min(MOST_TOKENS, max(FEWEST_TOKENS, power_of_2(tokens)))


def stages(block_rows: int, block_inputs: int, tokens: int, shared_bytes: int) -> int:
    """Count the tiles of two-byte numbers that fit into shared memory.

    Args:
        block_rows: Rows of a tile of the weight.
        block_inputs: Inputs of a tile.
        tokens: B.
        shared_bytes: What a block may have.

    Returns:
        Tiles in flight.
    """
    return max(2, shared_bytes // (2 * block_inputs * (block_rows + tile_tokens(tokens))))
