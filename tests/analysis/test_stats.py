"""Intervals against closed forms and independent computations."""

import math

import numpy as np
import pytest

from lacuna.analysis import stats


def column(values):
    return np.asarray(values, dtype=float)[:, None]


def test_mean_interval_is_the_normal_one_for_many_samples():
    """Broken: error bars of an accuracy are not 95% intervals."""
    values = np.random.default_rng(3).normal(5, 2, 4000)
    got = stats.interval(column(values), stats.mean)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert got.value == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08 * half)


@pytest.mark.parametrize(("hits", "n"), [(30, 100), (150, 200)])
def test_proportion_has_wilsons_interval_and_the_bootstrap_agrees(hits, n):
    """Broken: a share of right answers has another interval than the table says, or the bootstrap is off."""
    scores = column([1] * hits + [0] * (n - hits))
    got = stats.interval(scores, stats.mean)
    assert got == stats.wilson(hits, n)
    assert np.quantile(stats.mean.draws(scores[None])[0], [0.025, 0.975]) == pytest.approx(
        (got.low, got.high), abs=1.5 / n
    )


def test_wilson_has_its_known_values():
    """Broken: Wilson's formula (10 of 10: 0.722 to 1; 5 of 10: 0.237 to 0.763)."""
    assert (stats.wilson(10, 10).low, stats.wilson(10, 10).high) == pytest.approx((0.7225, 1), abs=1e-4)
    assert (stats.wilson(5, 10).low, stats.wilson(5, 10).high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


@pytest.mark.parametrize(("n", "share"), [(4, 0.80), (10, 0.90), (24, 0.93)])
def test_intervals_of_few_samples_hold_the_mean_as_often_as_the_page_on_bias_says(n, share):
    """Broken: how far intervals of few samples can be trusted is a number that nobody looked at."""
    runs = [run[:, None] for run in np.random.default_rng(0).normal(0, 1, (3000, n))]
    held = np.mean([one.low <= 0 <= one.high for one in stats.intervals(runs, stats.mean)])
    assert held == pytest.approx(share, abs=0.015)


def test_wilson_of_none_and_of_all_ends_at_0_and_1_themselves():
    """Broken: a file says that an accuracy of 0 has 2.78e-17 as its lower end, and one of 1 may lie below its interval."""
    ends = [(stats.wilson(0, n).low, stats.wilson(n, n).high) for n in range(1, 500)]
    assert set(ends) == {(0.0, 1.0)}


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_equal_scores_do_not_look_certain(score):
    """Broken: 20 needles of 20 are shown as 100% without doubt."""
    got = stats.interval(column([score] * 20), stats.mean)
    assert got.high - got.low > 0.1


def test_perplexity_is_that_of_all_tokens():
    """Broken: windows of unequal length weigh the same, and the figure disagrees with the metric."""
    windows = np.array([[200.0, 100], [30, 10], [9, 3]])
    assert stats.interval(windows, stats.perplexity).value == pytest.approx(math.exp(239 / 113))


def test_perplexity_interval_agrees_with_the_delta_method():
    """Broken: the interval of a perplexity is not that of exp(mean)."""
    generator = np.random.default_rng(5)
    nll = generator.normal(2.5, 0.3, 600)
    got = stats.interval(np.stack([nll * 128, np.full(600, 128.0)], 1), stats.perplexity)
    middle, half = nll.mean(), 1.96 * nll.std() / math.sqrt(600)
    assert (got.low, got.high) == pytest.approx((math.exp(middle - half), math.exp(middle + half)), rel=0.01)


def test_median_interval_agrees_with_order_statistics():
    """Broken: the bars of a latency are not those of its median."""
    values = np.sort(np.random.default_rng(7).lognormal(0, 0.5, 401))
    got = stats.interval(column(values), stats.median)
    half = 1.96 * math.sqrt(401) / 2
    assert got.value == np.median(values)
    assert got.low == pytest.approx(values[round(200 - half)], rel=0.05)
    assert got.high == pytest.approx(values[round(200 + half)], rel=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Broken: 95% intervals hold the true mean in much fewer than 95% of repetitions."""
    generator = np.random.default_rng(11)
    found = [stats.interval(column(generator.normal(0, 1, 60)), stats.mean) for _ in range(300)]
    assert 0.90 < np.mean([not f.excludes(0.0) for f in found]) < 0.98


def test_pairs_are_drawn_together():
    """Broken: a small loss on every sample drowns in the spread between samples."""
    hard = np.random.default_rng(13).normal(0, 10, 50)
    loss = np.random.default_rng(17).normal(0.5, 0.1, 50)
    paired = stats.difference(column(hard + loss), column(hard), stats.mean)
    apart = stats.unpaired(column(hard + loss), column(hard), stats.mean)
    half = 1.96 * loss.std() / math.sqrt(50)
    assert (paired.low, paired.high) == pytest.approx((loss.mean() - half, loss.mean() + half), abs=0.3 * half)
    assert paired.excludes(0.0)
    assert not apart.excludes(0.0)


def test_ratio_is_the_speed_up():
    """Broken: dense over method is turned round, or its interval is that of one side only."""
    generator = np.random.default_rng(19)
    dense, fast = generator.normal(10, 0.5, 300), generator.normal(4, 0.2, 300)
    got = stats.ratio(column(dense), column(fast), stats.median)
    assert got.value == pytest.approx(2.5, rel=0.02)
    assert got.low < 2.5 < got.high
    assert got.high - got.low < 0.1


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples_have_no_interval(n):
    """Broken: one sample is shown with a bar of no width, as if it were certain; or none ends in a traceback."""
    got = stats.interval(column([0.5] * n), stats.mean)
    assert math.isnan(got.low)
    assert got.n == n
    assert math.isnan(stats.difference(column([1.0] * n), column([0.0] * n), stats.mean).low)
    assert math.isnan(stats.ratio(column([1.0] * n), column([2.0] * 5), stats.median).high)


def test_equal_samples_give_equal_intervals():
    """Broken: a report is another one each time it is made."""
    values = column(np.random.default_rng(23).random(40))
    assert stats.interval(values, stats.mean) == stats.interval(values.copy(), stats.mean)


def test_many_samples_do_not_need_many_copies(monkeypatch):
    """Broken: resamples drawn in blocks are fewer than those drawn at once, or others."""
    values = column(np.random.default_rng(29).random(50))
    whole = stats.interval(values, stats.mean)
    monkeypatch.setattr(stats, "BLOCK", 50 * 7)
    assert vars(stats.interval(values, stats.mean)) == pytest.approx(vars(whole), rel=1e-12)


def test_resamples_are_those_of_a_plain_loop():
    """Broken: counts times samples, or ranks of sorted samples, are not the resamples' statistic."""
    values = np.random.default_rng(31).random((30, 2)) + 1
    rows = [np.random.default_rng(0).integers(0, 30, (stats.RESAMPLES, 30))][0]
    assert stats.mean.draws(values[None])[0] == pytest.approx([values[i, 0].mean() for i in rows])
    plain = [math.exp(values[i, 0].sum() / values[i, 1].sum()) for i in rows]
    assert stats.perplexity.draws(values[None])[0] == pytest.approx(plain)
    ordered = values[np.argsort(values[:, 0])]
    assert stats.median.draws(values[None])[0] == pytest.approx([np.median(ordered[i, 0]) for i in rows])


def test_a_model_that_broke_has_an_interval():
    """Broken: a perplexity beyond all floats ends the report, or leaves nan where a loss is."""
    broke, whole = np.array([[1e6, 10.0], [2e6, 10]]), np.array([[20.0, 10], [30, 10]])
    assert stats.difference(broke, whole, stats.perplexity).low > 1e100


def test_equal_pairs_do_not_look_certain():
    """Broken: ten needles found by both are shown as a difference of 0 without doubt."""
    got = stats.difference(column([1] * 10), column([1] * 10), stats.mean)
    assert (got.value, got.low, got.high) == pytest.approx((0, -0.2775, 0.2775), abs=1e-3)


@pytest.mark.parametrize("statistic", [stats.mean, stats.perplexity, stats.median])
def test_many_at_once_are_each_alone(statistic):
    """Broken: runs that are resampled together get each other's intervals, or those of other sizes."""
    generator = np.random.default_rng(37)
    runs = [generator.random((n, 2)) + 1 for n in (9, 30, 9, 1, 30)]
    for one, alone in zip(stats.intervals(runs, statistic), (stats.interval(r, statistic) for r in runs), strict=True):
        assert vars(one) == pytest.approx(vars(alone), nan_ok=True, rel=1e-12)


def test_ends_are_numpys_quantiles():
    """Broken: the interval's ends are other ranks than the 2.5th and 97.5th per cent."""
    draws = np.random.default_rng(41).normal(0, 1, (3, 2000))
    low, high = stats.quantiles(draws)
    assert low == pytest.approx(np.quantile(draws, 0.025, axis=1))
    assert high == pytest.approx(np.quantile(draws, 0.975, axis=1))


def test_a_sample_that_is_no_number_leaves_no_interval():
    """Broken: a window with NaN vanishes, and the others look like the whole."""
    got = stats.interval(column([1.0, math.nan, 2.0]), stats.mean)
    assert math.isnan(got.value)
    assert math.isnan(got.low)
