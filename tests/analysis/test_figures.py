"""Every figure by its content: panels, marks, lines, labels."""

import subprocess
import sys

import numpy as np
import pytest
from lacuna.analysis import style
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame

FIGURES = plugins.names("figures")


def draw(name, frame):
    return plugins.load("figures", name).draw(Study(frame))


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
def test_a_figure_leaves_matplotlib_as_it_was(name, demo):
    """Broken: a notebook's own figures change their look after one of ours."""
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(name, demo)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_lies_outside_of_the_page(name, broken):
    """Broken: labels of a figure are cut off."""
    figure = draw(name, broken)
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


def test_methods_look_different_and_always_the_same():
    """Broken: two methods share colour and marker, or a new one changes its look from machine to machine."""
    assert len(set(style.LOOKS.values())) == len(style.LOOKS)
    code = "from lacuna.analysis.style import look; print(look('quite_new'))"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert new == str(style.look("quite_new"))
    assert style.look("quite_new") not in style.LOOKS.values()
