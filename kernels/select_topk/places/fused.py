"""Places of chosen rows in few instructions: a block's rows are groups of 128, of which each belongs to one warp.

A prefix sum over all rows goes through all warps, and through shared memory again for the layout of its stores.
Here a lane holds four neighbours of a group, so that sums within a group never leave a warp; those of four groups share
32 bits, since a group has no more than 128 rows. Only the groups' own sums go through shared memory.

Shape legend: Z = 4 quarters of the groups, J groups of a quarter, L = 32 lanes, F = 4 neighbours.
"""

import triton
import triton.language as tl

from ..search.fused import NEIGHBOURS, reaching

QUARTERS, LANES = tl.constexpr(4), tl.constexpr(32)
GROUP_ROWS = tl.constexpr(128)


@triton.jit
def grouped(rows, GROUPS: tl.constexpr):
    """View rows in the form that sums are taken in, which moves nothing: a lane holds four neighbours as it is.

    Args:
        rows: (GROUPS * 128,) anything, a row after the other.
        GROUPS: Z * J, a power of two, at least 4.

    Returns:
        (Z, J, L, F), the same order.
    """
    return tl.reshape(rows, [QUARTERS, GROUPS // QUARTERS, LANES, NEIGHBOURS])


@triton.jit
def lanes_ahead(flag, GROUPS: tl.constexpr):
    """Count the chosen rows before each lane's.

    Args:
        flag: (Z, J, L, F) int32, 1 for each row that is chosen.
        GROUPS: Z * J.

    Returns:
        (Z, J, L) int32, and how many are chosen altogether.
    """
    shift = tl.arange(0, QUARTERS) * 8
    packed = tl.sum(tl.sum(flag, 3) << shift[:, None, None], 0)
    ahead = tl.cumsum(packed, 1) - packed
    # A field is at most 128, so what a shift of a negative number brings in is cut off.
    ahead = (ahead[None, :, :] >> shift[:, None, None]) & 0xFF
    sums = tl.reshape((tl.sum(packed, 1)[None, :] >> shift[:, None]) & 0xFF, [GROUPS])
    before = tl.reshape(tl.cumsum(sums, 0) - sums, [QUARTERS, GROUPS // QUARTERS])
    return ahead + before[:, :, None], tl.sum(sums, 0)


@triton.jit
def places_of(chosen, GROUPS: tl.constexpr):
    """Count the chosen rows before each row.

    Args:
        chosen: (Z, J, L, F) whether each row is chosen.
        GROUPS: Z * J.

    Returns:
        (Z, J, L, F) int32, and how many are chosen altogether.
    """
    flag = chosen.to(tl.int32)
    ahead, total = lanes_ahead(flag, GROUPS)
    return ahead[:, :, :, None] + tl.cumsum(flag, 3) - flag, total


@triton.jit
def settled(score, lo_score, hi_score, excess, room, first_tie, GROUPS: tl.constexpr):
    """Tell which rows are chosen, of those between two scores the first ones.

    Args:
        score: (Z, J, L, F) scores.
        lo_score: Finite; what reaches it is chosen, if that is no more than are wanted.
        hi_score: What reaches it is chosen in any case.
        excess: How many more than are wanted reach the lower score.
        room: How many of those between the two are chosen otherwise.
        first_tie: How many there are before these rows.
        GROUPS: Z * J.

    Returns:
        (Z, J, L, F) whether each is chosen, and first_tie for the rows after these.
    """
    chosen = score >= lo_score
    if excess != 0:
        above = score >= hi_score
        tie = chosen & (above == 0)
        ordinal, ties = places_of(tie, GROUPS)
        chosen = above | (tie & (first_tie + ordinal < room))
        first_tie += ties
    return chosen, first_tie


@triton.jit
def scatter(place, row, chosen, DIRECT: tl.constexpr):
    """Store some rows, each at a place of its own.

    Triton deals scattered stores out anew among the threads, through shared memory. The instruction itself does not.

    Args:
        place: Pointers to int32.
        row: int32, what is stored there.
        chosen: Whether it is.
        DIRECT: Whether by the instruction itself, which the interpreter has not.
    """
    if DIRECT:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.global.b32 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,r,r", [place.to(tl.int64), row, chosen.to(tl.int32)], tl.int32, False, 1,
        )  # fmt: skip
    else:
        tl.store(place, row, mask=chosen)


@triton.jit
def write_rows(out, score, first_row, lo_score, hi_score, excess, room, first_place, first_tie, GROUPS: tl.constexpr,
               DIRECT: tl.constexpr):  # fmt: skip
    """Write the chosen of some rows to their places.

    Args:
        out: Where the set's first place is.
        score: (Z, J, L, F) scores.
        first_row: Number of the first of these rows.
        lo_score: As `settled` has it.
        hi_score: As `settled` has it.
        excess: As `settled` has it.
        room: As `settled` has it.
        first_place: Rows that are chosen before these.
        first_tie: As `settled` has it.
        GROUPS: Z * J.
        DIRECT: As `scatter` has it.

    Returns:
        first_place and first_tie for the rows after these.
    """
    chosen, first_tie = settled(score, lo_score, hi_score, excess, room, first_tie, GROUPS)
    place, total = places_of(chosen, GROUPS)
    scatter(out + (first_place + place), first_row + grouped(tl.arange(0, GROUPS * GROUP_ROWS), GROUPS), chosen, DIRECT)
    return first_place + total, first_tie


@triton.jit
def write_reached(out, score, first_row, lo, first_place, GROUPS: tl.constexpr, DIRECT: tl.constexpr):
    """Write the rows that reach a score to their places.

    Args:
        out: Where the set's first place is.
        score: (GROUPS * 128,) scores.
        first_row: Number of the first of these rows.
        lo: A key that what is chosen reaches.
        first_place: Rows that are chosen before these.
        GROUPS: Z * J.
        DIRECT: As `scatter` has it.

    Returns:
        first_place for the rows after these.
    """
    ahead, total = lanes_ahead(grouped(reaching(score, lo, DIRECT), GROUPS), GROUPS)
    # Nothing is added, which the compiler does not know: it compares again instead of keeping what it found before.
    flag = grouped(reaching(score, lo + (total >> 31), DIRECT), GROUPS)
    place = first_place + ahead[:, :, :, None] + tl.cumsum(flag, 3) - flag
    row = first_row + grouped(tl.arange(0, GROUPS * GROUP_ROWS), GROUPS)
    scatter(out + place, row, flag != 0, DIRECT)
    return first_place + total
