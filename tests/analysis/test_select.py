"""The table in the terminal, of chosen cells."""

import pytest

from lacuna.analysis.points import points
from lacuna.analysis.render import terminal_tables
from lacuna.analysis.select import where


def test_conditions_hold_together(demo):
    """Broken: a table of some cells has others too, or 0.50 is not 0.5."""
    kept = where(demo, ["task=needle", "method.k=0.50", "method=topk"])
    assert set(kept["task"]) == {"needle"}
    assert set(kept["method_label"]) == {"topk k=0.5"}
    assert where(demo, []) is demo


@pytest.mark.parametrize(
    ("condition", "said"),
    [("needle", "expected COLUMN=VALUE"), ("taks=needle", "did you mean 'task'"), ("task=neddle", "task has: decode")],
)
def test_a_wrong_condition_is_one_sentence(demo, condition, said):
    """Broken: a slip of the pen gives an empty table, or a traceback."""
    with pytest.raises(ValueError, match=said):
        where(demo, [condition])


def test_a_table_for_each(demo):
    """Broken: --by task gives one table, or a task is missing."""
    text = terminal_tables(points(demo), "task")
    assert [line.split()[1] for line in text.split("\n") if line.startswith("task ")] == [
        "decode_time",
        "needle",
        "perplexity",
    ]
    assert "speed-up" in terminal_tables(points(demo), "method")
