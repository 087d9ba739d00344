"""The end of a search among few scores: once each thread has no more than two that are still in question.

A step over all scores of a block of 16384 is 256 instructions of each thread, and the slowest of many sets takes nine
steps, of which five or six are about a handful of scores. (Simulated: 128 sets, 4.4 steps in the mean, 9.4 the worst.)

Shape legend: C chunks, T threads of a block, F = 4 neighbours that a thread holds.
"""

import triton
import triton.language as tl

NEIGHBOURS = tl.constexpr(4)


@triton.jit
def picked(score, lo_score, hi_score, THREADS: tl.constexpr):
    """Pick the scores between two others, as they lie in threads.

    Args:
        score: (C * T * F,) scores, as a load deals them out: four neighbours to a thread.
        lo_score: The lower bound, which counts.
        hi_score: The upper bound, which does not.
        THREADS: T.

    Returns:
        (2 T,) two of each thread, -inf where there are none, and how many there are; 65536 more for each thread with
        more than two.
    """
    CHUNKS: tl.constexpr = score.shape[0] // (THREADS * NEIGHBOURS)
    score = tl.reshape(score, [CHUNKS, THREADS, NEIGHBOURS])
    inside = (score >= lo_score) & (score < hi_score)
    number = tl.sum(tl.sum(inside.to(tl.int32), 2), 0)
    top = tl.max(tl.max(tl.where(inside, score, float("-inf")), 2), 0)
    bottom = tl.min(tl.min(tl.where(inside, score, float("inf")), 2), 0)
    both = tl.join(top, tl.where(number > 1, bottom, float("-inf")))
    return tl.reshape(both, [2 * THREADS]), tl.sum(number + ((number > 2).to(tl.int32) << 16), 0)
