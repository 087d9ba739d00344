"""Times of operations: baselines, bounds, and what is drawn of them."""

import csv

import pandas as pd
import pytest

from lacuna.analysis import bench, kernel_table
from lacuna.analysis.sources import read, together
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame, write

HEAD = [
    "op",
    "case",
    "twin",
    "baseline",
    "status",
    "reason",
    "device",
    "versions",
    "dtype",
    "median_ms",
    "bytes",
    "flops",
    "achieved_gb_s",
    "ceiling_gb_s",
]
CASE = "b2_h8_g4_s1024"
ROWS = [
    ("dense_decode", CASE, "fused", "", "ok", "", 0.50, 1000),
    ("dense_decode", CASE, "", "sdpa_cudnn", "ok", "", 0.40, 1000),
    ("dense_decode", CASE, "", "naive", "ok", "", 2.00, 1000),
    ("dense_decode", CASE, "", "sdpa_math", "error", "no kernel here", None, 1000),
    ("loki_pipeline", CASE, "fused", "", "ok", "", 0.25, 400),
    *((stage, CASE, "fused", "", "ok", "", 0.08, 130) for stage in ("lowrank_score", "select_topk", "gather_decode")),
]


@pytest.fixture
def path(tmp_path):
    """A table as `lacuna bench -o` writes it, with round numbers."""
    with (tmp_path / "kernels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(HEAD)
        for op, case, twin, baseline, status, reason, ms, size in ROWS:
            speed = "" if ms is None else size / ms
            rows.writerow([op, case, twin, baseline, status, reason, "GPU", "torch 2", "bfloat16", ms, size, 2 * size,
                           speed, 4000])  # fmt: skip
    return tmp_path / "kernels.csv"


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_gains_are_over_the_fastest_of_the_same_case(path):
    """Broken: the headline is over a baseline that is easy to beat."""
    found = bench.decode(bench.read(path)).set_index("op").loc["loki_pipeline"]
    assert (found["gain"], found["fastest_name"]) == (pytest.approx(0.40 / 0.25), "sdpa_cudnn")
    assert (found["gain_naive"], found["naive_name"]) == (pytest.approx(8.0), "naive")
    assert found["bound"] == pytest.approx(2.5)


def test_gains_are_over_dense_attention_of_the_same_dtype(path):
    """A step in two bytes a number would be held against attention in four, and the gain be twice what it is."""
    half = bench.read(path)
    wide = half[half["op"].eq("dense_decode")].assign(dtype="float32", median_ms=0.1, bytes=2000.0)
    found = bench.decode(pd.concat([wide, half], ignore_index=True)).set_index("op").loc["loki_pipeline"]
    assert (found["gain"], found["bound"]) == (pytest.approx(0.40 / 0.25), pytest.approx(2.5))


def test_the_table_names_baselines_and_failures(path):
    """Broken: a speed-up stands without the kernel it is over, or a baseline that did not run is a blank."""
    table = kernel_table.lay_out(bench.read(path))
    rows = {row[1]: row for row in table.rows}
    assert rows["loki_pipeline"][5:] == ["1.60× sdpa_cudnn", "2.50×", "64%", "8.00×"]
    assert rows["lowrank_score"][5] == "–"
    assert rows["dense_decode (sdpa_math)"][2] == "error [a]"
    assert table.notes == ["[a] no kernel here"]
    assert not any(text == "" for row in table.rows for text in row)


def test_records_and_times_make_one_report(path, demo, tmp_path):
    """Broken: a speed-up and an accuracy cannot stand in one report."""
    write(demo, tmp_path / "demo.csv")
    both = together([read(path), read(tmp_path / "demo.csv")])
    assert len(both.study.bench) == len(ROWS)
    assert len(both.study.points) == 30
    assert len(both.where(["task=needle"]).study.frame) == 30


def test_the_chain_is_held_against_bound_and_break_even(path):
    """Broken: a mark of the figure is not the measured gain, or its bound is another's."""
    axis = plugins.load("figures", "kernel_speedup").draw(Study(to_frame([]), bench.read(path))).axes[0]
    marks = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert marks["loki: measured"] == [pytest.approx(1.6)]
    assert marks["loki: bound of its bytes"] == [pytest.approx(2.5)]
    assert "sdpa_cudnn; naive 5.00× slower" in axis.get_yticklabels()[0].get_text()


def test_keys_of_a_model_are_named(path):
    """Broken: a gain on a model's keys is read as one on random keys."""
    timed = bench.read(path)
    timed["case"] += "_keys-pocket"
    axis = plugins.load("figures", "kernel_speedup").draw(Study(to_frame([]), timed)).axes[0]
    assert axis.get_yticklabels()[0].get_text().splitlines()[0].endswith(", keys of pocket")


def test_stages_stand_beside_each_other(path):
    """Broken: stages overlap, or one is missing."""
    axis = plugins.load("figures", "stage_breakdown").draw(Study(to_frame([]), bench.read(path))).axes[0]
    assert [round(bar.get_x()) for bar in axis.patches] == [0, 80, 160]
    assert next(line for line in axis.lines if line.get_label() == "fastest dense").get_xdata()[0] == pytest.approx(400)


def test_the_roof_is_the_measured_copy(path):
    """Broken: the bandwidth line is off by a factor, and every kernel looks good."""
    axis = plugins.load("figures", "roofline").draw(Study(to_frame([]), bench.read(path))).axes[0]
    roof = next(line for line in axis.lines if line.get_label().startswith("device copy"))
    x, y = roof.get_xdata()[0], roof.get_ydata()[0]
    assert y / x == pytest.approx(4.0)  # 4 TB/s: 4 Tflop/s at one flop a byte
    chain = next(line for line in axis.lines if line.get_label() == "loki_pipeline")
    assert chain.get_ydata()[0] == pytest.approx(800 / 0.25e-3 / 1e12)


def test_an_operation_looks_the_same_in_every_panel(path, tmp_path):
    """Broken: the legend gives the mark of one operation to another one's panel, or the line of bytes hides the marks."""
    one = bench.read(path)
    other = one[one["op"] != "dense_decode"].assign(run="second")
    figure = plugins.load("figures", "roofline").draw(Study(to_frame([]), pd.concat([one, other])))
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in axis.lines if "copy" not in
              line.get_label()} for axis in figure.axes]  # fmt: skip
    assert len(looks) == 2
    assert looks[1].items() <= looks[0].items()
    assert len(set(looks[1].values())) == len(looks[1])
    assert all(axis.get_ylim()[1] < 10 * max(max(line.get_ydata()) for line in axis.lines if "copy" not in
               line.get_label()) for axis in figure.axes)  # fmt: skip


def test_the_passkey_curve_is_by_length(make):
    """Broken: the share found at one length stands at another."""
    cells = [make.needle("topk", {"k": 0.5}, 0.5, n) for n in (256, 512, 1024)]
    axis = plugins.load("figures", "passkey_curve").draw(Study(to_frame(cells))).axes[0]
    line = axis.containers[0][0]
    assert list(line.get_xdata()) == [256, 512, 1024]
    assert list(line.get_ydata()) == pytest.approx([c.metrics["accuracy"] for c in cells])


def test_times_have_a_table_in_the_terminal(path, capsys):
    """Broken: `lacuna table` of what `lacuna bench` wrote says that there is nothing to show, or is too wide."""
    from lacuna import cli
    from lacuna.analysis.render import WIDTH

    assert cli.main(["table", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1.60× sdpa_cudnn" in out
    assert max(map(len, out.split("\n"))) <= WIDTH
