"""How sets that are out of their bounds are shared by the blocks that mend them.

Shape legend: B batch, G KV heads, S rows in the cache, R dims.
"""

from typing import NamedTuple

from ..select_topk.joint.fused import MOST_CHUNKS, STEPS
from ..tiling import TILE_BYTES, power_of_2

# The fewest rows for which a block more helps to mend a set.
CHUNK_ROWS = 512


class MendPlan(NamedTuple):
    """How sets that are out of bounds are mended.

    Attributes:
        slots: Blocks that the GPU holds at once, at least.
        most_chunks: The most blocks that may share a set.
        boards: The most sets that several blocks may share.
        block_rows: Rows of a tile.
    """

    slots: int
    most_chunks: int
    boards: int
    block_rows: int

    @property
    def words(self) -> int:
        """Through which the blocks of a set tell each other their counts."""
        return 1 + self.most_chunks + 3 + 2 * STEPS

    @property
    def board_words(self) -> int:
        """Of all sets, and a counter of tickets."""
        return 1 + self.boards * self.words


def mend_plan(sets: int, rows: int, dims: int, item_bytes: int, multiprocessor_count: int) -> MendPlan:
    """Choose how sets that are out of bounds are mended.

    Args:
        sets: B * G.
        rows: S.
        dims: R.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU, of which each holds two blocks; where no block may wait, 1.

    Returns:
        The plan.
    """
    # Four launches at once leave a place free: of each all blocks but one of a set may wait for one that has not begun.
    most = max(1, min(MOST_CHUNKS, multiprocessor_count // 2, rows // CHUNK_ROWS))
    tile = min(256, max(16, TILE_BYTES // (power_of_2(max(16, dims)) * item_bytes)))
    return MendPlan(2 * multiprocessor_count, most, min(sets, multiprocessor_count) if most > 1 else 0, tile)
