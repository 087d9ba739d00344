"""Tests of significance against independent computations."""

import itertools
import math

import numpy as np
import pytest

from lacuna.analysis import significance, stats
from lacuna.analysis.points import points
from lacuna.results.frame import to_frame


def column(values):
    return np.asarray(values, dtype=float)[:, None]


@pytest.mark.parametrize(("wins", "losses"), [(0, 5), (3, 9), (4, 4), (7, 1), (0, 0)])
def test_mcnemar_counts_every_outcome(wins, losses):
    """Broken: the exact p is not the share of all 2 ** n outcomes that are as far from even."""
    ours = column([1] * wins + [0] * losses + [1, 0])
    theirs = column([0] * wins + [1] * losses + [1, 0])
    n, far = wins + losses, abs(wins - losses)
    outcomes = [abs(2 * sum(c) - n) >= far for c in itertools.product((0, 1), repeat=n)]
    assert significance.mcnemar(ours, theirs) == pytest.approx(np.mean(outcomes))


def test_mcnemar_of_many_pairs_is_a_number():
    """Broken: two thousand pairs that differ overflow a float."""
    ones = column([1] * 2000)
    assert significance.mcnemar(ones, 1 - ones) < 1e-300


@pytest.mark.parametrize(("df", "t"), [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (23, 2.069), (120, 1.980)])
def test_student_has_the_values_of_the_printed_table(df, t):
    """Broken: 5% is another share."""
    assert significance.student_tails(t, df) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("df", [3, 4, 17, 200, 2001])
def test_student_is_the_integral_of_its_density(df):
    """Broken: odd and even degrees of freedom, or the step to the normal distribution, disagree with the density."""
    x = np.linspace(-1.7, 1.7, 200_001)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    inside = (scale * (1 + x * x / df) ** (-(df + 1) / 2)).sum() * (x[1] - x[0])
    assert significance.student_tails(1.7, df) == pytest.approx(1 - inside, abs=5e-4)


def test_p_of_a_mean_is_that_of_the_t_test():
    """Broken: the standard error that goes into p is not the paired one."""
    loss = np.random.default_rng(3).normal(0.4, 1, 30)
    base = np.random.default_rng(5).normal(0, 10, 30)
    change = stats.difference(column(base + loss), column(base), stats.mean)
    t = loss.mean() / (loss.std(ddof=1) / math.sqrt(30))
    assert significance.student(change) == pytest.approx(significance.student_tails(t, 29), rel=0.15)


def test_p_of_a_ratio_is_of_its_logarithm():
    """Broken: twice as fast and twice as slow are not equally clear."""
    generator = np.random.default_rng(7)
    a, b = column(generator.lognormal(0, 0.1, 40)), column(generator.lognormal(0.03, 0.1, 40))
    there, back = stats.ratio(a, b, stats.median), stats.ratio(b, a, stats.median)
    assert significance.student_ratio(there) == pytest.approx(significance.student_ratio(back), rel=0.3)
    assert math.isnan(significance.student_ratio(stats.NOTHING))


def test_holm_has_its_textbook_values_and_skips_what_is_no_test():
    """Broken: corrected values are not monotone, or missing ones count as comparisons."""
    got = significance.holm(np.array([0.01, math.nan, 0.04, 0.03, 0.005]))
    assert got == pytest.approx([0.03, math.nan, 0.06, 0.06, 0.02], nan_ok=True)


def test_holm_keeps_its_promise():
    """Broken: in tables where nothing differs, more than one in twenty has a finding."""
    draws = np.random.default_rng(11).random((2000, 12))
    assert np.mean([(significance.holm(row) < 0.05).any() for row in draws]) < 0.065


def test_the_detectable_change_is_found_four_times_of_five():
    """Broken: the stated change would be missed, or a much smaller one would be found as often."""
    generator, found = np.random.default_rng(13), 0
    size = significance.detectable(stats.interval(column(generator.normal(0, 1, 100)), stats.mean))
    for _ in range(400):
        change = stats.interval(column(generator.normal(size, 1, 100)), stats.mean)
        found += significance.student(change) < 0.05
    assert 0.7 < found / 400 < 0.9


def test_points_say_which_test_they_had(demo):
    """Broken: right and wrong get a t-test, or the correction is over something else than the table."""
    found = points(demo)
    tests = found[found["p"].notna()].groupby("task")["test"].unique()
    assert {task: list(kinds) for task, kinds in tests.items()} == {
        "decode_time": ["t"],
        "needle": ["McNemar"],
        "perplexity": ["t"],
    }
    assert found["p_holm"].to_numpy() == pytest.approx(significance.holm(found["p"].to_numpy()), nan_ok=True)


def test_one_sample_has_no_p(make):
    """Broken: a single window ends the report, or looks certain."""
    cells = [make.perplexity("full", {}, 1.0, windows=1), make.perplexity("topk", {"k": 0.5}, 0.5, windows=1)]
    assert points(to_frame(cells))["p"].isna().all()
