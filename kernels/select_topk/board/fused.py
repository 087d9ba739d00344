"""What blocks that search one row together tell each other: words in memory, of two counts and a number of arrivals.

Shape legend: C blocks (chunks) of a row.
"""

import triton
import triton.language as tl

from ..search.fused import both_counts, ordered_key, score_of

# Of a word: two counts of 28 bits, and arrivals. A count is below 2^28 as rows are.
FIELD, ARRIVALS = tl.constexpr(28), tl.constexpr(56)
MASK = tl.constexpr((1 << 28) - 1)
# One arrival, and the counts below.
ARRIVAL, COUNTS = tl.constexpr(1 << 56), tl.constexpr((1 << 56) - 1)


@triton.jit
def post(word, value, CHUNKS: tl.constexpr):
    """Add a block's number to a word of the board.

    Args:
        word: Pointer to the word, zero before; each is used once.
        value: int64 below 2^56, also in sum.
        CHUNKS: C; alone there is nobody to tell.
    """
    if CHUNKS > 1:
        tl.atomic_add(word, value + ARRIVAL, sem="relaxed")


@triton.jit
def collect(word, value, CHUNKS: tl.constexpr):
    """Wait until all blocks of a set have posted.

    Args:
        word: Pointer to the word.
        value: What this block has posted.
        CHUNKS: C; alone there is nothing to wait for.

    Returns:
        The sum.
    """
    if CHUNKS == 1:
        return value
    seen = tl.load(word, volatile=True)
    while (seen >> ARRIVALS) < CHUNKS:
        seen = tl.load(word, volatile=True)
    return seen & COUNTS


@triton.jit
def collect_both(word, first, second, CHUNKS: tl.constexpr):
    """Wait until all blocks of a set have posted to two words, which are read at once.

    Args:
        word: Pointer to the first word; the other follows.
        first: What this block has posted to it.
        second: What it has posted to the other.
        CHUNKS: As `collect` has it.

    Returns:
        Both sums.
    """
    if CHUNKS == 1:
        return first, second
    one, other = tl.load(word, volatile=True), tl.load(word + 1, volatile=True)
    while ((one >> ARRIVALS) < CHUNKS) | ((other >> ARRIVALS) < CHUNKS):
        one, other = tl.load(word, volatile=True), tl.load(word + 1, volatile=True)
    return one & COUNTS, other & COUNTS


@triton.jit
def two(lower, upper):
    """Put two counts into one number.

    Args:
        lower: One.
        upper: The other.

    Returns:
        int64.
    """
    return lower.to(tl.int64) | (upper.to(tl.int64) << FIELD)


@triton.jit
def counted(first, second, WIDE: tl.constexpr):
    """Count two truths over a chunk.

    Args:
        first: One, for each row.
        second: The other.
        WIDE: Whether there may be more than 65535 rows, as in the interpreter, where one block holds all.

    Returns:
        Both counts, as `two` puts them.
    """
    if WIDE:
        return tl.sum(first.to(tl.int64) + (second.to(tl.int64) << FIELD), 0)
    both = tl.sum(first.to(tl.int32) + (second.to(tl.int32) << 16), 0)
    return two(both & 0xFFFF, (both >> 16) & 0xFFFF)


@triton.jit
def counted_at(score, first, second, third, fourth, WIDE: tl.constexpr, DIRECT: tl.constexpr, THREADS: tl.constexpr):
    """Count the scores of a chunk that reach four keys.

    Args:
        score: The scores.
        first: A key.
        second: A key.
        third: A key.
        fourth: A key.
        WIDE: As `counted` has it.
        DIRECT: As `reaching` has it.
        THREADS: Of the block.

    Returns:
        The counts of the first two and of the last two, as `two` puts them.
    """
    if WIDE:
        return (
            counted(score >= score_of(first), score >= score_of(second), WIDE),
            counted(score >= score_of(third), score >= score_of(fourth), WIDE),
        )
    lower, upper = (
        both_counts(score, first, second, THREADS, DIRECT),
        both_counts(score, third, fourth, THREADS, DIRECT),
    )
    lower, upper = tl.split(tl.sum(tl.join(lower, upper), 0))
    return two(lower & 0xFFFF, (lower >> 16) & 0xFFFF), two(upper & 0xFFFF, (upper >> 16) & 0xFFFF)


@triton.jit
def lifted(score, some):
    """Make a guess a number that can be averaged over blocks.

    Args:
        score: The guess.
        some: Whether the block has one.

    Returns:
        Its key, int64 and not negative; 0 if there is none.
    """
    return tl.where(some, ordered_key(score).to(tl.int64) + (1 << 31), 0)


@triton.jit
def lowered(total, blocks):
    """Average keys that were lifted.

    Args:
        total: Their sum.
        blocks: How many have one, at least 1.

    Returns:
        The score of the mean key.
    """
    return score_of((total // blocks - (1 << 31)).to(tl.int32))
