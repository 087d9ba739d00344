"""Speed-up over rows of the cache: lines, bounds, and what is not drawn."""

import pandas as pd
import pytest

from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame

speedup_rows = plugins.load("figures", "speedup_rows")


def grid(*lengths):
    """Batches 1 and 16: dense takes its bytes plus 10, a pipeline a quarter of them plus 30, the naive one ten times dense."""
    rows = []
    for batch in (1, 16):
        for length in lengths:
            size = float(batch * length)
            shape = {"case": f"b{batch}_h32_g8_s{length}_1of4", "run": "grid", "device": "GPU", "dtype": "bfloat16",
                     "status": "ok", "batch": batch, "heads": 32, "groups": 8, "context": length}  # fmt: skip
            times = (("dense_decode", "", size, size + 10), ("dense_decode", "naive", size, 10 * (size + 10)))
            for op, baseline, nbytes, ms in (*times, ("loki_pipeline", "", size / 4, size / 4 + 30)):
                rows.append(shape | {"op": op, "baseline": baseline, "bytes": nbytes, "median_ms": ms})
    return Study(to_frame([]), pd.DataFrame(rows))


def test_a_line_is_the_gain_of_one_batch():
    """Broken: a region where a method loses is drawn as a gain, or a batch under another's name."""
    (axis,) = speedup_rows.draw(grid(16, 64, 1024)).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axis.lines if not line.get_label().startswith("_")}
    assert lines["batch 1"] == pytest.approx([26 / 34, 74 / 46, 1034 / 286])
    assert lines["batch 16"][0] == pytest.approx(266 / 94)
    assert lines["bound of its bytes"] == pytest.approx([4, 4, 4])
    assert lines["naive"] == pytest.approx([0.1, 0.1, 0.1])
    assert axis.get_ylim()[0] < 0.1


def test_two_lengths_are_no_curve():
    """Broken: the five shapes that every run times are joined by a line, though heads and batches differ."""
    with pytest.raises(ValueError, match="three"):
        speedup_rows.draw(grid(16, 64))
