"""Bootstrap intervals. Every number that a table or a figure shows with an interval gets it here.

Percentile bootstrap with a fixed seed: equal samples give equal intervals. A statistic gives its value of samples
[n, C], and its resamples [G, R] of G runs of n samples at once; the C columns are what it needs (one score; or the sum
of nll and the tokens).
The units that are drawn are samples of one run: the intervals hold for other prompts or steps, not for other machines.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
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

    def draws(self, samples_GnC: Array, seed: int = 0) -> Array:
        """The estimate of each resample [G, R] of G runs; equal n and seed draw the same samples for every run."""


@dataclass(frozen=True)
class OfSums:
    """A function of the columns' sums [..., C] and n; a resample is a row of counts times the samples, uncopied."""

    finish: Callable[[Array, int], Array]

    def value(self, samples_nC: Array) -> float:
        """The estimate; NaN of no samples."""
        n = len(samples_nC)
        return float(self.finish(samples_nC.sum(0), n)) if n else math.nan

    def draws(self, samples_GnC: Array, seed: int = 0) -> Array:
        """The estimate of each resample: one matrix product for all runs."""
        runs, n, columns = samples_GnC.shape
        flat = samples_GnC.transpose(0, 2, 1).reshape(runs * columns, n)
        sums = np.concatenate([flat @ counts_Rn.T for counts_Rn in _counts(n, seed)], axis=1)
        return self.finish(sums.reshape(runs, columns, RESAMPLES).transpose(0, 2, 1), n)


@dataclass(frozen=True)
class Median:
    """Median of column 0. Draws are of sorted samples, so that one table of ranks serves all runs of n samples."""

    def value(self, samples_nC: Array) -> float:
        """The estimate; NaN of no samples."""
        return float(np.median(samples_nC[:, 0])) if len(samples_nC) else math.nan

    def draws(self, samples_GnC: Array, seed: int = 0) -> Array:
        """The estimate of each resample."""
        ordered = np.sort(samples_GnC[:, :, 0], axis=1)
        low, high = _middle_ranks(ordered.shape[1], seed)
        return np.asarray((ordered[:, low] + ordered[:, high]) / 2)


def _mean(sums: Array, n: int) -> Array:
    return np.asarray(sums[..., 0] / n)


def _perplexity(sums: Array, n: int) -> Array:
    assert n, "no windows"
    # a model that broke has a number too, and inf - inf is none
    return np.asarray(np.exp(np.minimum(sums[..., 0] / sums[..., 1], 600)))


mean = OfSums(_mean)  # of column 0: accuracy, or any score
perplexity = OfSums(_perplexity)  # exp of summed nll (column 0) over summed tokens (column 1), by window
median = Median()  # of column 0: latency


def interval(samples_nC: Array, statistic: Statistic) -> Interval:
    """Estimate and percentile interval of one run; see `intervals`."""
    return intervals([samples_nC], statistic)[0]


def intervals(runs: Sequence[Array], statistic: Statistic) -> list[Interval]:
    """Estimates and percentile intervals of many runs [n, C]; those of equal n are resampled together.

    Scores that are all 0 or 1 are a proportion and get Wilson's interval, which holds at its ends too, where the
    bootstrap has no width.
    """
    found = [Interval(statistic.value(run), math.nan, math.nan, len(run)) for run in runs]
    plain = [not (statistic is mean and len(run) > 1 and is_binary(run)) for run in runs]
    for i, one in enumerate(found):
        found[i] = one if plain[i] else wilson(round(one.value * one.n), one.n)
    for members in _alike([(len(run) if ok else 0,) for run, ok in zip(runs, plain, strict=True)]):
        _spread(found, members, statistic.draws(np.stack([runs[i] for i in members])))
    return found


def difference(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """Statistic of ours minus that of theirs on the SAME samples; see `differences`."""
    return differences([(ours_nC, theirs_nC)], statistic)[0]


def differences(pairs: Sequence[tuple[Array, Array]], statistic: Statistic) -> list[Interval]:
    """Statistic of ours minus that of theirs on the SAME samples (paired: a sample is drawn for both or for none).

    Where all pairs of scores 0 or 1 have one difference (none differs, or one side alone is always right) the bootstrap
    has no width; n pairs then bound the share that is otherwise by Wilson's interval of 0 in n.
    """
    assert all(len(a) == len(b) for a, b in pairs), "pairs need samples of equal number and order"
    assert statistic is not median, "draws of a median are of sorted samples, which are no pairs"
    found = [Interval(statistic.value(a) - statistic.value(b), math.nan, math.nan, len(a)) for a, b in pairs]
    alike = [statistic is mean and len(a) > 1 and is_binary(a) and is_binary(b) and _one(a - b) for a, b in pairs]
    found = [bounded(one) if constant else one for one, constant in zip(found, alike, strict=True)]
    for members in _alike([(0 if constant else len(a),) for (a, _), constant in zip(pairs, alike, strict=True)]):
        ours, theirs = (np.stack([pairs[i][side] for i in members]) for side in (0, 1))
        _spread(found, members, statistic.draws(ours) - statistic.draws(theirs))
    return found


def bounded(change: Interval) -> Interval:
    """The interval of a difference of shares that was the same in all n pairs, from what n pairs cannot exclude."""
    most = wilson(0, change.n).high
    low, high = max(-1.0, change.value - most), min(1.0, change.value + most)
    return Interval(change.value, low, high, change.n, math.sqrt(most / change.n))


def _one(samples_nC: Array) -> bool:
    return bool((samples_nC[:, 0] == samples_nC[0, 0]).all())


def unpaired(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """The same difference where the samples are not of the same units: each side is drawn for itself."""
    value = statistic.value(ours_nC) - statistic.value(theirs_nC)
    n = min(len(ours_nC), len(theirs_nC))
    if n < 2:
        return Interval(value, math.nan, math.nan, n)
    return of_draws([value], [n], [statistic.draws(ours_nC[None])[0] - statistic.draws(theirs_nC[None], 1)[0]])[0]


def ratio(ours_nC: Array, theirs_nC: Array, statistic: Statistic) -> Interval:
    """Statistic of ours over that of theirs, unpaired; see `ratios`."""
    return ratios([(ours_nC, theirs_nC)], statistic)[0]


def ratios(pairs: Sequence[tuple[Array, Array]], statistic: Statistic) -> list[Interval]:
    """Statistic of ours over that of theirs, unpaired: the speed-up of `theirs` where ours is dense.

    The error is that of the ratio's logarithm.
    """
    found = [_over(statistic.value(a), statistic.value(b), min(len(a), len(b))) for a, b in pairs]
    for members in _alike([(len(a), len(b)) for a, b in pairs]):
        ours, theirs = (np.stack([pairs[i][side] for i in members]) for side in (0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):  # times of 0 ms are wrong, and shown as what they are
            draws = statistic.draws(ours) / statistic.draws(theirs, 1)
            errors = np.log(draws).std(axis=1, ddof=1)
        _spread(found, members, draws)
        for i, error in zip(members, errors, strict=True):
            found[i] = replace(found[i], error=float(error))
    return found


def wilson(hits: int, n: int) -> Interval:
    """Wilson's score interval of a proportion; of none and of all it ends at 0 and at 1 themselves."""
    share, z2 = hits / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low, high = middle - half if hits else 0.0, middle + half if hits < n else 1.0  # rounding leaves 3e-17 there
    return Interval(share, low, high, n, math.sqrt(share * (1 - share) / n))


def of_draws(values: Sequence[float], counts: Sequence[int], draws: Sequence[Array]) -> list[Interval]:
    """Estimates and percentile intervals of what was resampled elsewhere from so many samples each."""
    found = [Interval(value, math.nan, math.nan, n) for value, n in zip(values, counts, strict=True)]
    for members in _alike([(n,) for n in counts]):
        _spread(found, members, np.stack([draws[i] for i in members]))
    return found


def draws(runs: Sequence[tuple[Array, Statistic]]) -> list[tuple[float, Array, int]]:
    """Estimate, resamples [R] and number of samples of each run; those of equal n share their draws, as pairs do."""
    return [(statistic.value(run), statistic.draws(run[None])[0], len(run)) for run, statistic in runs]


def is_binary(samples_nC: Array) -> bool:
    """Whether every score is 0 or 1: right or wrong."""
    return bool(np.isin(samples_nC[:, 0], (0.0, 1.0)).all())


def _over(ours: float, theirs: float, n: int) -> Interval:
    return Interval(ours / theirs if theirs else math.nan, math.nan, math.nan, n)


def _alike(sizes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Places of equal size, at most as many at once as fit into a block; a size below 2 has none."""
    places = defaultdict[tuple[int, ...], list[int]](list)
    for place, size in enumerate(sizes):
        if min(size) > 1:
            places[size].append(place)
    for size, members in places.items():
        most = max(1, BLOCK // max(RESAMPLES, *size))
        yield from (members[start : start + most] for start in range(0, len(members), most))


def _spread(found: list[Interval], members: Sequence[int], draws_GR: Array) -> None:
    low, high = quantiles(draws_GR)
    with np.errstate(over="ignore", invalid="ignore"):  # the spread of a model that broke is infinite
        errors = draws_GR.std(axis=1, ddof=1)
    for i, a, b, error in zip(members, low, high, errors, strict=True):
        found[i] = replace(found[i], low=float(a), high=float(b), error=float(error))


def quantiles(draws_GR: Array) -> tuple[Array, Array]:
    """The ends [G] of the 95% percentile interval of each row, by linear interpolation between ranks."""
    count = draws_GR.shape[1]
    places = [(count - 1) * (1 - LEVEL) / 2, (count - 1) * (1 + LEVEL) / 2]
    ranks = [r for place in places for r in (math.floor(place), min(math.floor(place) + 1, count - 1))]
    ordered = np.partition(draws_GR, sorted(set(ranks)), axis=1)
    broken, ends = np.isnan(draws_GR).any(axis=1), []
    for place, (below, above) in zip(places, (ranks[:2], ranks[2:]), strict=True):
        a, b = ordered[:, below], ordered[:, above]
        step = np.subtract(b, a, out=np.zeros_like(a), where=a != b)
        ends.append(np.where(broken, math.nan, a + (place - below) * step))
    return ends[0], ends[1]


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
