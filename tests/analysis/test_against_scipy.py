"""The statistics of tables against scipy's, which share no line with ours."""

import itertools
import math

import numpy as np
import pytest

from lacuna.analysis import significance, stats

scipy = pytest.importorskip("scipy.stats")


def columns(*rows):
    return [np.array(row, dtype=float)[:, None] for row in rows]


def scores(seed, n, ours=0.7, theirs=0.8):
    """Right and wrong answers of two methods to the same questions, where hard ones are hard for both."""
    hard = np.random.default_rng(seed).random((2, n))
    return columns((hard[0] < ours).astype(float), ((hard[0] + 0.2 * hard[1]) < theirs).astype(float))


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 30), (17, 20), (480, 1000)])
def test_wilson(hits, n):
    """Broken: a proportion's interval is another one than Wilson's without correction of continuity."""
    theirs = scipy.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    ours = stats.wilson(hits, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar(seed):
    """Broken: p is not the two-sided exact binomial one of the pairs that differ."""
    ours, theirs = scores(seed, 80)
    won, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    assert significance.mcnemar(ours, theirs) == pytest.approx(scipy.binomtest(won, won + lost).pvalue, rel=1e-9)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 101, 1999, 2500, 100_000])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.1, 4.5])
def test_tails_of_student(df, t):
    """Broken: p of a mean is another distribution's."""
    assert significance.student_tails(t, df) == pytest.approx(2 * scipy.t.sf(t, df), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("n", [8, 24, 200])
def test_p_of_pairs(n):
    """Broken: p of a paired difference is not the paired t-test's, but for the noise of 2000 resamples."""
    drawn = np.random.default_rng(n).normal(size=(2, n))
    ours, theirs = columns(drawn[0] + 0.8 / n**0.5, 0.3 * drawn[1] + drawn[0])
    t = scipy.ttest_rel(ours[:, 0], theirs[:, 0])
    got = significance.student(stats.difference(ours, theirs, stats.mean))
    assert scipy.norm.isf(got / 2) == pytest.approx(scipy.norm.isf(t.pvalue / 2), rel=0.06)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_bootstrap_of_one_run(statistic):
    """Broken: an interval is not the percentile bootstrap's, but for the noise of resampling."""
    run = np.random.default_rng(3).lognormal(size=60)
    theirs = scipy.bootstrap((run,), getattr(np, statistic), n_resamples=20_000, method="percentile", rng=5)
    ours = stats.interval(run[:, None], getattr(stats, statistic))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, rel=0.05)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, rel=0.05)
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.08)


def test_bootstrap_of_pairs():
    """Broken: samples of a pair are drawn apart, or the difference of perplexities is not that of sums."""
    drawn = np.random.default_rng(4).normal(2, 0.3, (2, 40))
    tokens = np.random.default_rng(5).integers(50, 300, 40).astype(float)
    ours, theirs = (np.stack([row * tokens, tokens], axis=1) for row in (drawn[0], drawn[0] + 0.05 * drawn[1]))

    def change(a, b, t):
        return np.exp((a * t).sum(-1) / t.sum(-1)) - np.exp((b * t).sum(-1) / t.sum(-1))

    data = (drawn[0], drawn[0] + 0.05 * drawn[1], tokens)
    found = scipy.bootstrap(data, change, n_resamples=20_000, method="percentile", paired=True, rng=6)
    got = stats.difference(ours, theirs, stats.perplexity)
    assert (got.low, got.high) == pytest.approx(tuple(found.confidence_interval), rel=0.06)


def test_holm_is_the_closed_test_of_bonferroni():
    """Broken: a corrected p is below 5% though some set of nulls that holds it is kept by Bonferroni's test."""
    random = np.random.default_rng(7)
    for _ in range(50):
        p = random.random(5) ** 3
        sets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
        closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(5)]
        assert significance.holm(p) == pytest.approx(closed)


@pytest.mark.parametrize("better", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("n", [5, 20])
def test_pairs_that_all_differ_alike_do_not_look_certain(better, n):
    """Broken: five needles that one method alone finds are a difference of exactly 1, with a star beside p = 0.06."""
    ours, theirs = columns([max(better, 0.0)] * n, [max(-better, 0.0)] * n)
    got = stats.difference(ours, theirs, stats.mean)
    most = scipy.binomtest(0, n).proportion_ci(0.95, method="wilson").high
    assert got.value == better
    assert (got.low, got.high) == pytest.approx((max(-1, better - most), min(1, better + most)))
    assert math.isfinite(got.error)
    assert got.error > 0
