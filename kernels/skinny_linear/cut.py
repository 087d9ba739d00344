"""How a product of few tokens with a large weight is cut: an even share of the weight's rows for every block.

Shape legend: B tokens, E inputs, F outputs.
"""

from typing import NamedTuple

from ..tiling import power_of_2

# Rows that a block has at the most; a tile of them is as high as the next power of two, and the rest of it is not read.
HALF_ROWS, MOST_ROWS = 64, 128
WIDTHS = (256, 128, 64)  # inputs of a tile, of which the widest is taken
FEWEST_TILES = 3  # in flight
FEWEST_TOKENS, MOST_TOKENS = 16, 32  # of a tile: what matrix instructions need, and up to which cuBLAS was slower
SHARED_BYTES = 224 * 1024  # of an SM, for the tiles of all its blocks


class SkinnyPlan(NamedTuple):
    """How the weight is cut.

    Attributes:
        rows: Rows of the weight that a block multiplies.
        block_rows: Power of two, at least `rows`.
        block_inputs: Inputs of a tile.
        num_warps: Warps of a block.
        num_stages: Tiles in flight.
        fetch_bytes: What each thread fetches into L2 of the weight's rows while the kernel before still runs.
    """

    rows: int
    block_rows: int
    block_inputs: int
    num_warps: int
    num_stages: int
    fetch_bytes: int


def skinny_plan(
    tokens: int, outputs: int, item_bytes: int, multiprocessor_count: int, shared: int
) -> SkinnyPlan | None:
    """Cut a product.

    Args:
        tokens: B.
        outputs: F.
        item_bytes: Bytes of one element of the weight.
        multiprocessor_count: SMs of the GPU.
        shared: Bytes of shared memory that a block may have.

    Returns:
        The plan: one block an SM, or two where a block would have more than half a tile of rows. None where torch's own
        product is taken: of more tokens than a tile has, in float32, whose products are not on the tensor cores, or on
        a GPU with less shared memory than Hopper's, where nothing was timed.
    """
    if tokens > MOST_TOKENS or outputs < 1 or item_bytes > 2 or shared < SHARED_BYTES:
        return None
    blocks = 1 if outputs <= HALF_ROWS * multiprocessor_count else 2
    slots = blocks * multiprocessor_count
    waves = -(-outputs // (slots * MOST_ROWS))
    rows = -(-outputs // (slots * waves))
    block_rows = max(HALF_ROWS, power_of_2(rows))
    width = next(width for width in WIDTHS if stages(block_rows, width, tokens, blocks) >= FEWEST_TILES)
    return SkinnyPlan(rows, block_rows, width, 4, stages(block_rows, width, tokens, blocks), 512)


def tile_tokens(tokens: int) -> int:
    """Count the tokens of a tile.

    Args:
        tokens: B.

    Returns:
        A power of two.
    """
    return max(FEWEST_TOKENS, power_of_2(tokens))


def stages(block_rows: int, block_inputs: int, tokens: int, blocks: int) -> int:
    """Count the tiles of two-byte numbers that fit into shared memory.

    Args:
        block_rows: Rows of a tile of the weight.
        block_inputs: Inputs of a tile.
        tokens: B.
        blocks: That share an SM.

    Returns:
        Tiles in flight.
    """
    return SHARED_BYTES // blocks // (2 * block_inputs * (block_rows + tile_tokens(tokens)))
