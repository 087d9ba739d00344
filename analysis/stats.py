"""Bootstrap intervals. Every number that a table or a figure shows with an interval gets it here.

Percentile bootstrap with a fixed seed: equal samples give equal intervals. A statistic gives its value and its
resamples [R] of samples [n, C]; the C columns are what it needs (one score; or the sum of nll and the tokens).
The units that are drawn are samples of one run: the intervals hold for other prompts or steps, not for other machines.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959963984540054  # the normal quantile that belongs to LEVEL
BLOCK = 4_000_000  # numbers drawn at once: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; low and high are NaN where n samples allow none (n < 2).

    Attributes:
        error: standard error, from the same resamples (for a ratio, that of its logarithm).
    """

    value: float
    low: float
    high: float
    n: int
    error: float = math.nan

    def excludes(self, point: float) -> bool:
        """Whether `point` lies outside: the usual, two-sided 5% reading."""
        return self.low > point or self.high < point


NOTHING = Interval(math.nan, math.nan, math.nan, 0)


class Statistic(Protocol):
    """What is estimated."""

    def value(self, samples_nC: Array) -> float:
        """The estimate; NaN of no samples."""

    def draws(self, samples_nC: Array, seed: int = 0) -> Array:
        """The estimate of each resample; equal n and seed draw the same samples."""


@dataclass(frozen=True)
class OfSums:
    """A function of the columns' sums [R, C] and n; a resample is then a row of counts times the samples, uncopied."""

    finish: Callable[[Array, int], Array]

    def value(self, samples_nC: Array) -> float:
        """The estimate; NaN of no samples."""
        n = len(samples_nC)
        return float(self.finish(samples_nC.sum(0, keepdims=True), n)[0]) if n else math.nan

    def draws(self, samples_nC: Array, seed: int = 0) -> Array:
        """The estimate of each resample."""
        n = len(samples_nC)
        return self.finish(np.concatenate([counts_Rn @ samples_nC for counts_Rn in _counts(n, seed)]), n)


@dataclass(frozen=True)
class Median:
    """Median of column 0. Draws are of sorted samples, so that one table of ranks serves all runs of n samples."""

    def value(self, samples_nC: Array) -> float:
        """The estimate; NaN of no samples."""
        return float(np.median(samples_nC[:, 0])) if len(samples_nC) else math.nan

    def draws(self, samples_nC: Array, seed: int = 0) -> Array:
        """The estimate of each resample."""
        ordered = np.sort(samples_nC[:, 0])
        low, high = _middle_ranks(len(ordered), seed)
        return np.asarray((ordered[low] + ordered[high]) / 2)


def _mean(sums_RC: Array, n: int) -> Array:
    return np.asarray(sums_RC[:, 0] / n)


def _perplexity(sums_RC: Array, n: int) -> Array:
    assert n, "no windows"
    # a model that broke has a number too, and inf - inf is none
    return np.asarray(np.exp(np.minimum(sums_RC[:, 0] / sums_RC[:, 1], 600)))


mean = OfSums(_mean)  # of column 0: accuracy, or any score
perplexity = OfSums(_perplexity)  # exp of summed nll (column 0) over summed tokens (column 1), by window
median = Median()  # of column 0: latency


def interval(samples_nC: Array, statistic: Statistic) -> Interval:
    """Estimate and percentile interval of one run.

    Scores that are all 0 or 1 are a proportion and get Wilson's interval, which holds at its ends too, where the
    bootstrap has no width.
    """
    n, value = len(samples_nC), statistic.value(samples_nC)
    if statistic is mean and n > 1 and is_binary(samples_nC):
        return wilson(round(value * n), n)
    return _interval(value, n, statistic.draws(samples_nC) if n > 1 else None)


def difference(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """Statistic of ours minus that of theirs on the SAME samples (paired: a sample is drawn for both or for none).

    Where no pair of scores 0 or 1 differs the bootstrap has no width; n pairs then bound the share that could differ,
    either way, by Wilson's interval of 0 in n.
    """
    n = len(ours_nC)
    assert n == len(theirs_nC), "pairs need samples of equal number and order"
    assert statistic is not median, "draws of a median are of sorted samples, which are no pairs"
    if statistic is mean and n > 1 and is_binary(ours_nC) and np.array_equal(ours_nC, theirs_nC):
        most = wilson(0, n).high
        return Interval(0.0, -most, most, n, math.sqrt(most / n))
    value = statistic.value(ours_nC) - statistic.value(theirs_nC)
    return _interval(value, n, statistic.draws(ours_nC) - statistic.draws(theirs_nC) if n > 1 else None)


def unpaired(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """The same difference where the samples are not of the same units: each side is drawn for itself."""
    value = statistic.value(ours_nC) - statistic.value(theirs_nC)
    n = min(len(ours_nC), len(theirs_nC))
    return _interval(value, n, statistic.draws(ours_nC) - statistic.draws(theirs_nC, 1) if n > 1 else None)


def ratio(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """Statistic of ours over that of theirs, unpaired: the speed-up of `theirs` where ours is dense."""
    value = statistic.value(ours_nC) / statistic.value(theirs_nC)
    n = min(len(ours_nC), len(theirs_nC))
    if n < 2:
        return Interval(value, math.nan, math.nan, n)
    draws = statistic.draws(ours_nC) / statistic.draws(theirs_nC, 1)
    found = _interval(value, n, draws)
    return Interval(value, found.low, found.high, n, float(np.log(draws).std(ddof=1)))


def wilson(hits: int, n: int) -> Interval:
    """Wilson's score interval of a proportion."""
    share, z2 = hits / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half), n, math.sqrt(share * (1 - share) / n))


def of_draws(value: float, n: int, draws: Callable[[], Array]) -> Interval:
    """Estimate and percentile interval of what was resampled elsewhere from n samples."""
    return _interval(value, n, draws() if n > 1 else None)


def is_binary(samples_nC: Array) -> bool:
    """Whether every score is 0 or 1: right or wrong."""
    return bool(np.isin(samples_nC[:, 0], (0.0, 1.0)).all())


def _interval(value: float, n: int, draws: Array | None) -> Interval:
    if draws is None:
        return Interval(value, math.nan, math.nan, n)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    with np.errstate(over="ignore"):  # the spread of a model that broke is infinite
        return Interval(value, float(low), float(high), n, float(draws.std(ddof=1)))


def _counts(n: int, seed: int) -> Iterator[Array]:
    # in blocks, so that 100,000 samples do not need 2000 copies of themselves at once
    return iter((_whole(n, seed),)) if n * RESAMPLES <= BLOCK else map(_counted, _draws(n, seed))


@functools.lru_cache(maxsize=32)
def _whole(n: int, seed: int) -> Array:
    return np.concatenate([_counted(rows) for rows in _draws(n, seed)])


def _counted(rows_Rn: NDArray[np.int64]) -> Array:
    count, n = rows_Rn.shape
    flat = (rows_Rn + n * np.arange(count)[:, None]).ravel()
    return np.bincount(flat, minlength=count * n).reshape(count, n).astype(np.float64)


@functools.lru_cache(maxsize=64)
def _middle_ranks(n: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    low, high = (n - 1) // 2, n // 2
    ranks = np.concatenate([np.partition(rows, (low, high), axis=1)[:, [low, high]] for rows in _draws(n, seed)])
    return ranks[:, 0], ranks[:, 1]


def _draws(n: int, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    generator, rows = np.random.default_rng(seed), max(1, BLOCK // n)
    for start in range(0, RESAMPLES, rows):
        yield generator.integers(0, n, (min(rows, RESAMPLES - start), n))
