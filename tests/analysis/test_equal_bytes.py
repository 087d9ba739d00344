"""Methods at equal bytes."""

import math

import numpy as np
import pytest

from lacuna.analysis import stats
from lacuna.analysis.equal_bytes import Budget, compare, interpolate
from lacuna.analysis.label import label_cells
from lacuna.analysis.table import summary
from lacuna.results.frame import to_frame


def budget(share, values):
    scores = np.asarray(values, dtype=float)
    return Budget(f"m k={share}", share, scores.mean(), stats.mean.draws(scores[None, :, None])[0], len(values), "")


def test_interpolation_is_linear_in_the_logarithm_and_stays_on_the_curve():
    """Broken: the value between two budgets is another, or a curve is continued beyond its ends."""
    curve = [budget(0.4, [0.8] * 3), budget(0.1, [0.2] * 3)]
    middle = interpolate(curve, 0.2)
    assert middle.value == pytest.approx(np.interp(math.log(0.2), np.log([0.1, 0.4]), [0.2, 0.8]))
    assert interpolate(curve, 0.4).value == pytest.approx(0.8)
    assert interpolate(curve, 0.09) is None
    assert interpolate(curve, 0.5) is None
    assert interpolate(curve[:1], 0.4) is None


def test_the_interval_is_that_of_a_plain_bootstrap(demo):
    """Broken: pairs are drawn apart, or one side's uncertainty is left out."""
    cells = label_cells(demo)
    found = compare(cells)
    row = found[(found["heading"] == "perplexity") & (found["bytes"] == 0.25) & (found["b"] == "streaming_llm")].iloc[0]
    windows = {
        label: np.array([[s["nll_nats"], s["tokens"]] for s in rows["samples"].iloc[0]])
        for label, rows in cells[cells["task"] == "perplexity"].groupby("method_label")
    }
    table = summary(demo).set_index("method_label")["bytes_ratio"]
    generator, draws = np.random.default_rng(99), []
    for _ in range(1500):
        i = generator.integers(0, 24, 24)
        at = [between(windows, table, row[f"{side}_between"].split(" and "), i) for side in ("a", "b")]
        draws.append(at[0] - at[1])
    low, high = np.quantile(draws, [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.12 * (high - low))


def between(windows, shares, labels, i):
    scores = [math.exp(windows[m][i, 0].sum() / windows[m][i, 1].sum()) for m in labels]
    points = sorted(zip([math.log(shares[m]) for m in labels], scores, strict=True))
    return np.interp(math.log(0.25), *zip(*points, strict=True))


def test_every_level_that_both_reach_is_there_and_no_other(demo):
    """Broken: methods are compared where one of them has no budget."""
    found = compare(label_cells(demo))
    assert set(found["heading"]) == {"perplexity", "needle accuracy"}
    assert set(found["bytes"]) == {0.5, 0.25}
    assert len(found) == 2 * 2 * 3
    assert (found["p_holm"] >= found["p"]).all()


def test_other_samples_and_surfaces_are_not_compared(make):
    """Broken: window 3 of one is paired with window 4 of another, or a line is drawn through k x d."""
    one = [make.perplexity("topk", {"k": k}, k) for k in (0.5, 0.25)]
    other = [make.perplexity("streaming_llm", {"window": k}, k, windows=20) for k in (0.5, 0.25)]
    assert compare(label_cells(to_frame([*one, *other]))).empty
    grid = [make.perplexity("loki", {"k": k, "d": d}, k) for k in (0.5, 0.25) for d in (0.25, 0.5)]
    assert compare(label_cells(to_frame([*one, *grid]))).empty


def test_methods_that_are_always_right_do_not_look_certain(make):
    """Broken: twenty needles found by both at two budgets each are a difference of 0 with a bar of no width."""
    cells = []
    for method, name in (("topk", "k"), ("streaming_llm", "window")):
        for k in (0.5, 0.25):
            asked = make.cell(method, {name: k}, "needle", {"length": 256})
            samples = [{"length": 256, "depth": 0.5, "repeat": i, "score": 1} for i in range(20)]
            cells.append(make.record(asked, {"accuracy": 1.0}, samples, k))
    found = compare(label_cells(to_frame(cells)))
    assert len(found)
    assert (found["low"] < -0.1).all()
    assert (found["high"] > 0.1).all()
    assert (found["p"] == 1).all()


def test_the_middle_serves_where_no_round_share_does(make):
    """Broken: curves that overlap between 0.3 and 0.45 of the bytes are never compared."""
    one = [make.perplexity("topk", {"k": k}, k) for k in (0.26, 0.41)]
    other = [make.perplexity("streaming_llm", {"window": k}, k) for k in (0.2, 0.36)]
    (share,) = compare(label_cells(to_frame([*one, *other])))["bytes"]
    assert share == pytest.approx(math.sqrt(0.30 * 0.40))
