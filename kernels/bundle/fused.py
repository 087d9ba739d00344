"""Rows that pass, appended for several tiles by one scan: a scan of a block is two barriers, whatever it adds up.

What the tiles of a bundle have found lies in fields of one word for each row of a tile, the last tile's on top; what is
older than a bundle has fallen out. A sum of words adds all fields at once, as none holds more than a tile has rows.

Shape legend: T rows of a tile, N tiles of a bundle.
"""

import triton
import triton.language as tl

FOUR, THREE = 128, 512  # the most rows of a tile of which a word has room for four fields, or three


def bundle_of(block_rows: int) -> int:
    """Count the tiles of a bundle.

    Args:
        block_rows: T.

    Returns:
        N: as many as there are fields of a word that each hold T.
    """
    return 4 if block_rows <= FOUR else 3 if block_rows <= THREE else 2


@triton.jit
def flagged(word, passing, TILES: tl.constexpr):
    """Put what a tile has found on top of what those before it have.

    Args:
        word: (T,) uint32.
        passing: (T,) which rows of the tile pass.
        TILES: N.

    Returns:
        The words.
    """
    bits: tl.constexpr = 32 // TILES  # of a word, for each
    return (word >> bits) | (passing.to(tl.uint32) << (bits * (TILES - 1)))


@triton.jit
def appended(out, kept, word, end, filled, TILES: tl.constexpr):
    """Write the rows of a bundle, ascending, behind those that were kept before.

    Args:
        out: Pointer to where the rows of the segment begin.
        kept: How many there are.
        word: (T,) uint32, as `flagged` makes it.
        end: One past the rows of the last tile.
        filled: How many tiles there are, at most N; what lies below their fields was written before.
        TILES: N.

    Returns:
        How many there are then.
    """
    bits: tl.constexpr = 32 // TILES
    mask: tl.constexpr = (1 << bits) - 1
    word = word >> (bits * (TILES - filled)) << (bits * (TILES - filled))
    row, through = tl.arange(0, word.shape[0]), tl.cumsum(word, 0)
    whole = tl.max(through, 0)  # the last of them, in every field
    for nth in tl.static_range(TILES):
        found = (word >> (bits * nth)) & mask
        place = kept + ((through >> (bits * nth)) & mask).to(tl.int32) - 1
        tl.store(out + place, row + (end - (TILES - nth) * word.shape[0]), mask=found > 0)
        kept += ((whole >> (bits * nth)) & mask).to(tl.int32)
    return kept
