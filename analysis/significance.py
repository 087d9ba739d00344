"""Tests of a change against dense: p-values, their correction over a table, and what the samples could have shown."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .stats import Array, Interval, Z

POWER = 0.8416212335729143  # the normal quantile of 80%: how often an effect of that size would be found
MANY = 2000  # degrees of freedom from which a normal quantile stands for Student's t


def mcnemar(ours_nC: Array, theirs_nC: Array) -> float:
    """Exact two-sided p of paired scores 0 and 1: among the pairs that differ, either side wins half the time."""
    ours = int(((ours_nC[:, 0] == 1) & (theirs_nC[:, 0] == 0)).sum())
    theirs = int(((ours_nC[:, 0] == 0) & (theirs_nC[:, 0] == 1)).sum())
    n = ours + theirs
    # logarithms: 2 ** 2000 is no float
    tail = sum(math.exp(_log_choose(n, k) - n * math.log(2)) for k in range(min(ours, theirs) + 1))
    return min(1.0, 2 * tail)


def student(change: Interval, null: float = 0.0) -> float:
    """Two-sided p of an estimate by Student's t, with the standard error that the bootstrap gives.

    The share of resamples beyond the null cannot be smaller than one in 2000, which no correction over a table
    survives; the standard error has no such floor.
    """
    if math.isnan(change.error) or change.n < 2:
        return math.nan
    distance = abs(change.value - null)
    if change.error == 0:
        return 1.0 if distance == 0 else 0.0
    # resamples are drawn from n samples, not from n - 1 degrees of freedom
    error = change.error * math.sqrt(change.n / (change.n - 1))
    return student_tails(distance / error, change.n - 1)


def student_ratio(change: Interval) -> float:
    """The same for a ratio against 1, on its logarithm, where a ratio and its inverse are equally far from 1."""
    if not change.value > 0:
        return math.nan
    return student(Interval(math.log(change.value), math.nan, math.nan, change.n, change.error))


def student_tails(t: float, df: int) -> float:
    """P(|T| > t) of Student's t with df degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4 and 26.7.8)."""
    if df > MANY or math.isinf(t):
        z = t if math.isinf(t) else t * (1 - 1 / (4 * df)) / math.sqrt(1 + t * t / (2 * df))
        return math.erfc(z / math.sqrt(2))
    angle = math.atan2(t, math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, 0.0 if df == 1 else cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, df, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def holm(p_values: Array) -> Array:
    """Holm's step-down correction: p-values that bound the chance of any false finding in the table; NaN stays NaN."""
    corrected = np.full(len(p_values), np.nan)
    known: NDArray[np.intp] = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    weights = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * weights)) if len(order) else []
    return corrected


def detectable(change: Interval) -> float:
    """Smallest true change that so many samples would show at 5% in four runs of five."""
    return (Z + POWER) * change.error


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
