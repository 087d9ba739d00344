"""The line that guesses of the k-th best score lie on: scores, or their keys.

Shape legend: none; everything here is a scalar, or has one shape.
"""

import triton
import triton.language as tl

from ..search.fused import between, score_of


@triton.jit
def place_of(key, BY_KEYS: tl.constexpr):
    """Tell where on the line of guesses a key lies.

    Guesses lie between scores; of positive ones over many decades, as weights are, between their keys, which are close
    to their logarithms.

    Args:
        key: A key.
        BY_KEYS: Whether guesses lie between keys.

    Returns:
        Its place, float32.
    """
    if BY_KEYS:
        return key.to(tl.float32)
    return score_of(key)


@triton.jit
def key_at(place, lo, hi, middle, BY_KEYS: tl.constexpr):
    """Make a place on the line of guesses a key strictly between two others.

    Args:
        place: As `place_of` tells it.
        lo: Key below.
        hi: Key above.
        middle: As `between` has it.
        BY_KEYS: As `place_of` has it.

    Returns:
        The key.
    """
    if BY_KEYS:
        inside = (place > lo.to(tl.float32)) & (place < hi.to(tl.float32))
        key = tl.where(inside, place, 0.0).to(tl.int32)
        return tl.where(inside & (key > lo) & (key < hi), key, middle)
    return between(place, lo, hi, middle)
