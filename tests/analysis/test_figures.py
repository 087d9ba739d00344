"""Every figure by its content: panels, marks, lines, labels."""

import numpy as np
import pandas as pd
import pytest

from lacuna.analysis import style
from lacuna.analysis.bench import read
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame
from lacuna.results.record import Record

FIGURES = plugins.names("figures")
BENCH = plugins.ROOT / "results" / "archive" / "2026-11-20-h200-kernels.csv"


@pytest.fixture(scope="module")
def rich(make):
    """Records that every figure can be drawn of: two numbers of ranks, energy, rank90, and those in records/."""
    found = [with_metrics(r) for r in (*make.sweep(), *make.sweep(ranks=1))]
    return to_frame([*found, *make.examples()])


def with_metrics(record):
    task = record.cell.task.name
    more = {"decode_time": {"energy_j_per_token": 2.5}, "pca": {"rank90_layer0": 9.0, "rank90_layer1": 12.0}}
    return Record(**{**vars(record), "metrics": {**record.metrics, **more.get(task, {})}})


def timed():
    """Times of decode, after them of a grid, and of kernels for many query rows."""
    decode = read(BENCH)
    rows = decode.head(2).assign(plan="", peak_mib=9.0)
    dense, own = (part.assign(case="b2_h32_g32_s2048_block64_d64") for part in (rows.head(1), rows.tail(1)))
    prompts = [dense.assign(op="attention", twin="", baseline="sdpa_flash"), own.assign(op="landmark_attention")]
    one = decode[decode["case"] == "b16_h32_g8_s16384"]
    grid = [one.assign(case=f"b16_h32_g8_s{rows}_1of4", context=rows) for rows in (4096, 16384, 131072)]
    return pd.concat([decode, *grid, *prompts], ignore_index=True)


def draw(name, frame, bench=None):
    return plugins.load("figures", name).draw(Study(frame, bench))


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows(name):
    """Broken: `list figures` and the report's captions are empty."""
    doc = plugins.describe("figures", name).doc
    assert len(doc.split("\n")[0]) > 20
    assert len(doc.split("\n\n")) > 1


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_data_says_what_it_needs(name, make):
    """Broken: a report of half a sweep ends in a traceback."""
    with pytest.raises(ValueError, match=r"^needs a cell"):
        draw(name, to_frame([make.failed(r.cell) for r in make.sweep()]))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_leaves_matplotlib_as_it_was(name, rich):
    """Broken: a notebook's own figures change their look after one of ours."""
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(name, rich, timed())
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_outside_of_the_page(name, rich):
    """Broken: labels of a figure are cut off."""
    figure = draw(name, rich, timed())
    with style.paper():
        figure.draw_without_rendering()
        box, page = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.05
    assert (np.array([box.x1, box.y1]) <= page + 0.05).all()


def test_accuracy_has_a_panel_per_task_at_measured_density(make):
    """Broken: a mark stands at the budget that was asked for, not at what was read; or the dense line is missing."""
    figure = draw("accuracy_density", to_frame(make.sweep()))
    assert [a.get_ylabel().split("\n")[0] for a in figure.axes] == ["needle accuracy", "perplexity"]
    for axis in figure.axes:
        marks = {c.get_label(): c[0].get_xdata() for c in axis.containers}
        assert set(marks) == {"loki", "streaming_llm", "topk"}
        assert list(marks["topk"]) == [0.125, 0.25, 0.5]
        assert any(line.get_label() == "full (dense)" for line in axis.lines)


def test_marks_of_two_arguments_are_not_joined(make):
    """Broken: a zigzag line through all k x d looks like a curve."""
    grid = [make.perplexity("loki", {"k": k, "d": d}, k) for k in (0.5, 0.25) for d in (0.25, 0.5)]
    axis = draw("accuracy_density", to_frame([make.perplexity("full", {}, 1.0), *grid])).axes[0]
    assert axis.containers[0][0].get_linestyle() == "None"


def test_needles_have_a_panel_per_method_and_hatch_what_is_missing(broken):
    """Broken: a cell that failed looks like needles that were not found."""
    figure = draw("needle_heatmap", broken)
    panels = {a.get_title().replace("\n", " "): a for a in figure.axes if a.images}
    assert len(panels) == 10
    assert panels["full"].images[0].get_array().mask[:, 0].all()
    assert not panels["topk k=0.5"].images[0].get_array().mask.any()


def test_time_names_the_baseline_and_admits_what_is_slower(demo):
    """Broken: a slow-down is shown as a speed-up, or nobody knows over what."""
    said = texts(draw("decode_time", demo))
    assert "dashed: full" in said
    assert "0.77×" in said


def test_time_over_contexts_has_a_gap_where_a_cell_failed(make):
    """Broken: a line runs straight through a context that ran out of memory."""
    records = make.sweep(prompts=(256, 1024, 4096))
    at = next(
        i for i, r in enumerate(records) if r.cell.method.name == "topk" and r.cell.task.args.get("prompt") == 1024
    )
    records[at] = make.failed(records[at].cell)
    axis = draw("decode_time", to_frame(records)).axes[0]
    line = next(c[0] for c in axis.containers if c.get_label().startswith("topk k=0.5"))
    assert np.isnan(line.get_ydata().astype(float)).tolist() == [False, True, False]


def test_bytes_are_the_ledgers_own(make):
    """Broken: what the selection itself reads is left out, and a method looks cheaper than it is."""
    axis = draw("accuracy_bytes", to_frame(make.sweep())).axes[0]
    marks = {c.get_label(): list(c[0].get_xdata()) for c in axis.containers}
    assert marks["topk"] == pytest.approx([0.165, 0.29, 0.54])


def test_the_front_holds_what_nothing_beats():
    """Broken: a mark that another one beats in both is on the front, or one that is best in one is not."""
    on_front = plugins.load("figures", "pareto_speed").on_front
    speed, quality = np.array([1.0, 2.0, 1.5, 2.0, 0.5]), np.array([0.9, 0.5, 0.4, 0.5, 0.9])
    assert list(on_front(speed, quality)) == [True, True, False, True, False]


def test_pareto_marks_have_measured_speed_and_score(make):
    """Broken: a method's score stands beside another one's speed."""
    axis = draw("pareto_speed", to_frame(make.sweep())).axes[0]
    assert sum(len(c[0].get_xdata()) for c in axis.containers) == 10
    fast = [x for c in axis.containers if c.get_label() == "streaming_llm" for x in c[0].get_xdata()]
    assert fast == pytest.approx([1 / 0.6] * 3, rel=0.1)


def test_budgets_of_two_kinds_are_not_on_one_axis(make):
    """Broken: a window of 64 tokens stands beside a share of 0.25."""
    cells = [make.perplexity("topk", {"k": k}, 0.5) for k in (0.5, 0.25)]
    cells += [make.perplexity("streaming_llm", {"window": w}, 0.5) for w in (64, 256)]
    figure = draw("perplexity_budget", to_frame(cells))
    assert [a.get_xlabel() for a in figure.axes] == ["k (share)", "window (count)"]


def test_rank90_is_by_layer(make):
    """Broken: layer 10 stands between 1 and 2, or the corpora share a line."""
    metrics = {f"rank90_layer{i}": 30.0 + i for i in range(12)}
    cells = [make.cell("full", {}, "pca", {"corpus": c, "rotary": "pre"}) for c in ("prose", "code")]
    axis = draw("rank90_layers", to_frame([make.record(c, metrics, []) for c in cells])).axes[0]
    assert [line.get_label() for line in axis.lines] == ["corpus=code", "corpus=prose"]
    assert list(axis.lines[0].get_ydata()) == list(metrics.values())


def test_break_even_is_where_the_line_crosses_for_good():
    """Broken: a method is called faster from a context on where it is slower again later."""
    break_even = plugins.load("figures", "speedup_context").break_even
    assert break_even([256, 1024], [0.5, 1.5]) == pytest.approx(512)
    assert break_even([256, 512, 1024], [0.5, 1.5, 0.9]) is None
    assert break_even([256, 512], [1.5, 2.0]) is None


@pytest.mark.parametrize("prompts", [(512,), (256, 1024)])
def test_the_bound_is_that_of_the_bytes(make, prompts):
    """Broken: a speed-up has no bound beside it, or one that comes from what was asked for."""
    axis = draw("speedup_context", to_frame(make.sweep(prompts=prompts))).axes[0]
    across = {round(float(v), 4) for line in axis.lines for v in (*line.get_xdata(), *line.get_ydata())}
    assert {round(1 / 0.54, 4), round(1 / 0.29, 4)} <= across


def test_scaling_is_over_the_fewest_ranks(make):
    """Broken: the time on two ranks is held against another method's, or against itself."""
    cells = [make.decode_time("full", {}, 1.0, ranks=r) for r in (1, 2)]
    half = Record(**{**vars(cells[1]), "samples": [{**s, "ms": s["ms"] / 2} for s in cells[1].samples]})
    axis = draw("rank_scaling", to_frame([cells[0], half])).axes[0]
    assert list(axis.containers[0][0].get_ydata()) == pytest.approx([1.0, 2.0])


def test_energy_is_held_against_full(make):
    """Broken: joules of another batch or setting are the measure."""
    cells = [make.decode_time("full", {}, 1.0), make.decode_time("topk", {"k": 0.5}, 0.5)]
    found = [
        Record(**{**vars(c), "metrics": {**c.metrics, "energy_j_per_token": e}})
        for c, e in zip(cells, (2.0, 3.0), strict=True)
    ]
    assert "1.50×" in texts(draw("energy", to_frame(found)))


def test_panels_beyond_what_is_read_are_counted(make):
    """Broken: two hundred panels take minutes, or the others vanish without a word."""
    cells = [make.needle("topk", {"k": 0.01 * k}, 0.5, 256) for k in range(1, 21)]
    figure = draw("needle_heatmap", to_frame(cells))
    assert len([a for a in figure.axes if a.images]) == 12
    assert "12 of 20 panels" in texts(figure)


def test_lines_beyond_what_is_told_apart_are_counted(make):
    """Broken: forty lines in a panel cannot be read, or thirty of them vanish without a word, or dense is one of them."""
    cells = [make.decode_time("full", {}, 1.0, n) for n in (256, 512)]
    cells += [make.decode_time("topk", {"k": 0.01 * k}, 0.01 * k, n) for k in range(10, 20) for n in (256, 512)]
    cells += [make.decode_time("loki", {"k": 0.5, "d": 0.25}, 0.5, n) for n in (256, 512)]
    figure = draw("decode_time", to_frame(cells))
    labels = [c.get_label().split(":")[0] for c in figure.axes[0].containers]
    assert len(labels) == style.MOST_LINES
    assert labels[:2] == ["full (dense)", "loki k=0.5 d=0.25"]
    assert "8 of 12 methods" in texts(figure)
