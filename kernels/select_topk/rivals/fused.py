"""The end of a search by several blocks: they tell each other the scores still in question, and each ranks them alone.

A step that all take together is a message to memory and back. Once some hundred scores of a hundred thousand are left,
these are a message, too: a block then finds the k-th among them alone, and knows how many rows are chosen before its
own. (Simulated, 131072 maxima over four heads, K = S/4: two steps are left of four, or of six in the slowest of eight
sets; of a model's keys, in which many scores are nearly equal, two to four are left of 3 to 14.)

Each block has a line of words on the board: a tally, then the scores. What a word says needs no order beside it.

Shape legend: C blocks (chunks) of a row, W words of all lines, padded.
"""

import triton
import triton.language as tl

from ..board.fused import ARRIVALS, FIELD, MASK, two
from ..places.fused import grouped, places_of
from ..search.fused import ordered_key, score_of

# Words of a line, and scores of a set that are few enough to be told; a block may have more of them than its share.
LINE, RIVALS = tl.constexpr(16), tl.constexpr(128)
SHARE = tl.constexpr(4)
# A word that says a score, and one that says something else, or nothing.
HERE, SAID = tl.constexpr(1 << 56), tl.constexpr(1 << 57)
SUMMED, SUM = tl.constexpr(40), tl.constexpr((1 << 40) - 1)


@triton.jit
def show(place, word, shown, DIRECT: tl.constexpr):
    """Store some words where other blocks wait for them.

    Args:
        place: Pointers to int64.
        word: int64.
        shown: Whether each is stored.
        DIRECT: Whether by the instruction that others may wait for, which the interpreter has not.
    """
    if DIRECT:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p st.relaxed.gpu.global.b64 [$1], $2; mov.b32 $0, 0; }",
            "=r,l,l,r", [place.to(tl.int64), word, shown.to(tl.int32)], tl.int32, False, 1,
        )  # fmt: skip
    else:
        tl.store(place, word, mask=shown)


@triton.jit
def tell_rivals(score, lo_score, hi_score, line, GROUPS: tl.constexpr, DIRECT: tl.constexpr):
    """Tell which scores of a block are still in question.

    Args:
        score: The block's scores.
        lo_score: Finite; what does not reach it is out.
        hi_score: What reaches it is chosen; NaN if nothing is yet.
        line: Where the block's words are, zero before.
        GROUPS: Of 128 rows, at least 4.
        DIRECT: As `show` has it.
    """
    reach = score >= hi_score
    above = tl.sum(reach.to(tl.int32), 0)
    rival = grouped((score >= lo_score) & (reach == 0), GROUPS)
    ordinal, number = places_of(rival, GROUPS)
    bits = grouped(score.to(tl.int32, bitcast=True), GROUPS).to(tl.int64) & 0xFFFFFFFF
    show(line + 1 + ordinal, bits | HERE, rival & (ordinal < LINE - 1), DIRECT)
    slot = tl.arange(0, LINE)
    show(line + slot, tl.where(slot == 0, two(above, number), 0) | SAID, (slot == 0) | (slot > number), DIRECT)


@triton.jit
def hear_rivals(lines, chunk, CHUNKS: tl.constexpr, BLOCK_LINES: tl.constexpr):
    """Wait for what all blocks of a set tell.

    Args:
        lines: Where the set's lines are.
        chunk: Which block this is.
        CHUNKS: C.
        BLOCK_LINES: W, a power of two, at least 16 C and the threads of a block, so that each word is one thread's.

    Returns:
        (W,) the scores in question, -inf between them; how many rows above these are in the blocks before; and whether
        all scores could be told.
    """
    at = tl.arange(0, BLOCK_LINES)
    known = at < CHUNKS * LINE
    words = tl.load(lines + at, mask=known, other=SAID, volatile=True)
    while tl.min((words != 0).to(tl.int32), 0) == 0:
        words = tl.load(lines + at, mask=known, other=SAID, volatile=True)
    score = tl.where((words >> ARRIVALS) == 1, words & 0xFFFFFFFF, 0xFF800000).to(tl.int32).to(tl.float32, bitcast=True)
    ahead = tl.where(at // LINE < chunk, words & MASK, 0)
    cut_off = (((words >> FIELD) & MASK) >= LINE).to(tl.int64) << SUMMED
    told = tl.sum(tl.where(at % LINE == 0, ahead + cut_off, 0), 0)
    return score, (told & SUM).to(tl.int32), (told >> SUMMED) == 0


@triton.jit
def rivals_ahead(rivals, chunk, lo_score, hi_score, BLOCK_LINES: tl.constexpr):
    """Count the scores of the blocks before, of those that were in question.

    Args:
        rivals: (W,) as `hear_rivals` has them.
        chunk: Which block this is.
        lo_score: The lower bound that was found.
        hi_score: The upper bound.
        BLOCK_LINES: W.

    Returns:
        How many reach the upper bound, and how many only the lower.
    """
    before = tl.arange(0, BLOCK_LINES) // LINE < chunk
    reach = before & (rivals >= hi_score)
    tie = before & (rivals >= lo_score) & (reach == 0)
    both = tl.sum(reach.to(tl.int32) + (tie.to(tl.int32) << 16), 0)
    return both & 0xFFFF, both >> 16


@triton.jit
def closed_in(rivals, lo, hi):
    """Draw a range together around the scores in it, which changes no count; of equal scores nothing else is left.

    Args:
        rivals: All scores that are still in question, among others.
        lo: The lower end, a key.
        hi: The upper end, a key, which no score in question reaches.

    Returns:
        The key of the least of them, and the one after that of the greatest.
    """
    asked = (rivals >= score_of(lo)) & ((rivals >= score_of(hi)) == 0)
    least = tl.min(tl.where(asked, rivals, float("inf")), 0)
    most = tl.max(tl.where(asked, rivals, float("-inf")), 0)
    return tl.maximum(lo, ordered_key(least)), tl.minimum(hi, ordered_key(most) + 1)
