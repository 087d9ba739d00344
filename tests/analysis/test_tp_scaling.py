"""Speed-up over ranks: which cells are held against which."""

import pandas as pd
import pytest

from lacuna.results import plugins

tp_scaling = plugins.load("figures", "tp_scaling")


def cells(*rows):
    names = ("model_label", "method", "method_label", "ranks", "task.prompt", "decode_ms_median", "status")
    return pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows])


def test_a_step_is_held_against_the_same_step_on_one_rank():
    """Broken: a gain over ranks is that over another model, prompt or method, or of a run that failed."""
    found = tp_scaling._scaled(
        cells(
            ("a", "full", "full", 1, 4096.0, 20.0, "ok"),
            ("a", "full", "full", 2, 4096.0, 11.0, "ok"),
            ("a", "full", "full", 4, 4096.0, 6.0, "ok"),
            ("a", "full", "full", 4, 4096.0, 1.0, "invalid"),
            ("a", "full", "full", 2, 8192.0, 15.0, "ok"),
            ("a", "topk", "topk k=1/4", 1, 4096.0, 10.0, "ok"),
            ("b", "full", "full", 2, 4096.0, 3.0, "ok"),
        )
    )
    assert dict(zip(found["ranks"], found["times"].round(3), strict=True)) == {1: 1.0, 2: 1.818, 4: 3.333}
    assert set(found["about"]) == {'{"prompt": 4096}'}
    assert set(found["method"]) == {"full"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_number_of_ranks_is_no_scaling(ranks):
    """Broken: a figure of one point is drawn, or a step held against itself."""
    assert tp_scaling._scaled(cells(("a", "full", "full", ranks, 4096.0, 20.0, "ok"))).empty
