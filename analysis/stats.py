"""Bootstrap intervals. Every number that a table or a figure shows with an interval gets it here.

Percentile bootstrap with a fixed seed: equal samples give equal intervals, to the last digit. A statistic maps
resamples [R, n, C] to [R]; the C columns of a sample are what it needs (one score; or the sum of nll and the tokens).
The units that are drawn are samples of one run: the intervals hold for other prompts or steps, not for other machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959963984540054  # the normal quantile that belongs to LEVEL
BLOCK = 4_000_000  # numbers drawn at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; low and high are NaN where n samples allow none (n < 2)."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside: the usual, two-sided 5% reading."""
        return self.low > point or self.high < point


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def mean(samples_RnC: Array) -> Array:
    """Mean of column 0: accuracy, or any score."""
    return np.asarray(samples_RnC[..., 0].mean(-1))


def perplexity(samples_RnC: Array) -> Array:
    """Exp of summed nll (column 0) over summed tokens (column 1); windows are the units that are drawn."""
    nll = samples_RnC[..., 0].sum(-1) / samples_RnC[..., 1].sum(-1)
    return np.asarray(np.exp(np.minimum(nll, 600)))  # a model that broke has a number too, and inf - inf is none


def median(samples_RnC: Array) -> Array:
    """Median of column 0: latency."""
    return np.asarray(np.median(samples_RnC[..., 0], -1))


def interval(samples_nC: Array, statistic: Statistic) -> Interval:
    """Estimate and percentile interval of one run.

    Where all scores are the same 0 or 1 the bootstrap has no width; Wilson's interval says what n allows to be said.
    """
    n = len(samples_nC)
    value = _estimate(samples_nC, statistic)
    if statistic is mean and n > 1 and value in (0.0, 1.0) and np.ptp(samples_nC[:, 0]) == 0:
        return wilson(round(value * n), n)
    return _interval(value, n, np.concatenate([statistic(samples_nC[i]) for i in _draws(n)]) if n > 1 else None)


def difference(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """Statistic of ours minus that of theirs on the SAME samples (paired: a sample is drawn for both or for none).

    Where no pair of scores 0 or 1 differs the bootstrap has no width; n pairs then bound the share that could differ,
    either way, by Wilson's interval of 0 in n.
    """
    n = len(ours_nC)
    assert n == len(theirs_nC), "pairs need samples of equal number and order"
    if statistic is mean and n > 1 and np.isin(ours_nC, (0, 1)).all() and np.array_equal(ours_nC, theirs_nC):
        most = wilson(0, n).high
        return Interval(0.0, -most, most, n)
    value = _estimate(ours_nC, statistic) - _estimate(theirs_nC, statistic)
    draws = [statistic(ours_nC[i]) - statistic(theirs_nC[i]) for i in _draws(n)] if n > 1 else []
    return _interval(value, n, np.concatenate(draws) if draws else None)


def unpaired(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """The same difference where the samples are not of the same units: each side is drawn for itself."""
    value = _estimate(ours_nC, statistic) - _estimate(theirs_nC, statistic)
    ours, theirs, n = _apart(ours_nC, theirs_nC, statistic)
    return _interval(value, n, ours - theirs if n > 1 else None)


def ratio(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """Statistic of ours over that of theirs, unpaired: the speed-up of `theirs` where ours is dense."""
    value = _estimate(ours_nC, statistic) / _estimate(theirs_nC, statistic)
    ours, theirs, n = _apart(ours_nC, theirs_nC, statistic)
    return _interval(value, n, ours / theirs if n > 1 else None)


def wilson(hits: int, n: int) -> Interval:
    """Wilson's score interval of a proportion."""
    share, z2 = hits / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n)


def _apart(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> tuple[Array, Array, int]:
    sides = (ours_nC, theirs_nC)
    n = min(map(len, sides))
    if n < 2:
        return ours_nC, theirs_nC, n
    drawn = [np.concatenate([statistic(side[i]) for i in _draws(len(side), seed)]) for seed, side in enumerate(sides)]
    return drawn[0], drawn[1], n


def _estimate(samples_nC: Array, statistic: Statistic) -> float:
    return float(statistic(samples_nC[None])[0]) if len(samples_nC) else math.nan


def _interval(value: float, n: int, draws: Array | None) -> Interval:
    if draws is None:
        return Interval(value, math.nan, math.nan, n)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), n)


def _draws(n: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    # in blocks, so that 100,000 samples do not need 2000 copies of themselves at once
    generator, rows = np.random.default_rng(seed), max(1, BLOCK // n)
    for start in range(0, RESAMPLES, rows):
        yield generator.integers(0, n, (min(rows, RESAMPLES - start), n))
