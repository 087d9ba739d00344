"""How samples become the number that stands for a task."""

from lacuna.analysis import stats
from lacuna.analysis.headlines import Headline, units

PASS = Headline("humaneval", "pass_at_1", "higher")


def draws(scores, count):
    """Completions of problems: the same score in each of `count` draws of a problem."""
    return [
        {"id": f"p{number}#{draw}", "problem": f"p{number}", "score": score}
        for number, score in enumerate(scores)
        for draw in range(count)
    ]


def test_draws_of_one_problem_are_one_sample():
    """Broken: twenty draws of ten problems have the interval of two hundred problems."""
    once, often = draws([1, 0, 1, 1, 0, 0, 0, 0, 1, 0], 1), draws([1, 0, 1, 1, 0, 0, 0, 0, 1, 0], 20)
    assert stats.interval(PASS.values(often), stats.mean) == stats.interval(PASS.values(once), stats.mean)
    assert stats.interval(PASS.values(often), stats.mean) == stats.wilson(4, 10)
    assert len(units(often)) == len(PASS.values(often)) == 10


def test_a_problem_counts_by_the_share_of_its_draws_that_passed():
    """Broken: the interval belongs to another number than pass@1 of the record."""
    samples = [*draws([1], 3), *draws([0], 1)]  # one problem, right in three draws of four
    samples += [{"id": "p1#0", "problem": "p1", "score": 0}]
    assert PASS.values(samples).tolist() == [[0.75], [0.0]]


def test_samples_without_a_problem_are_samples_of_their_own():
    """Broken: all needles of a cell become one sample."""
    needles = [{"id": f"{n}", "score": 1} for n in range(5)]
    assert len(Headline("needle", "accuracy", "higher").values(needles)) == len(units(needles)) == 5
