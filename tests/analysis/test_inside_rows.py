"""Figures of the rows that are attended, of agreement, and of lengths."""

import numpy as np
import pytest

KEPT = ("topk keep=0.25", "top_theta k=8", "streaming_llm window=8")


def test_effective_k_has_band_and_budget(make):
    """Broken: what was asked for is drawn as what was kept."""
    axis = make.draw("effective_k", make.example("kept_rows").records(make)).axes[0]
    lines = {line.get_label(): line for line in axis.lines}
    assert {name for name in lines if not name.startswith("_")} == {*KEPT, "all rows"}
    assert list(lines["top_theta k=8"].get_ydata()) == pytest.approx([9, 18, 27])
    unnamed = [line for name, line in lines.items() if name.startswith("_")]
    assert [6.0, 12.0, 18.0] in [pytest.approx(list(line.get_ydata())) for line in unnamed]
    band = axis.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (pytest.approx(4.5), pytest.approx(29))


def test_size_factor_is_of_selections_alone(make):
    """Broken: a method without a budget in rows has a factor."""
    axis = make.draw("size_factor", make.example("kept_rows").records(make)).axes[0]
    marks = {c.get_label(): list(c[0].get_ydata()) for c in axis.containers}
    assert marks == {"topk keep=0.25": pytest.approx([1.1] * 3), "top_theta k=8": pytest.approx([1.6] * 3)}
    assert next(list(line.get_ydata()) for line in axis.lines if line.get_linestyle() == "--") == [1, 1]


def test_union_stands_above_its_sets(make):
    """Broken: the rows of one head are shown as what is read."""
    axis = make.draw("v_row_union", make.example("kept_rows").records(make)).axes[0]
    marks = {c.get_label(): list(c[0].get_ydata()) for c in axis.containers}
    assert set(marks) == set(KEPT)
    assert marks["topk keep=0.25"] == pytest.approx([0.325] * 3)
    strokes = [list(line.get_ydata()) for line in axis.lines if line.get_marker() == "_" and line.get_markersize() == 7]
    assert [0.25] * 3 in strokes


def test_popularity_is_over_tokens_of_the_window(make):
    """Broken: ranges are taken for tokens, or layers run from right to left."""
    figure = make.draw("v_row_popularity", make.example("kept_rows").records(make))
    panels = {a.get_title(): a.images[0] for a in figure.axes if a.images}
    assert set(panels) == set(KEPT)
    image = panels["topk keep=0.25"]
    assert image.get_array()[2].tolist() == [1.0, 0.4, 0.1, 0.5]
    assert image.get_extent() == [0, 64, 2.5, -0.5]


def test_agreement_shows_both_measures_and_what_is_missing(make):
    """Broken: recall is shown under the name of the Jaccard index, or a missing head as a zero."""
    recall, jaccard = (
        a
        for a in make.draw("agreement_heads", make.example("kept_rows").records(make)).axes
        if a.images and a.get_title()
    )
    assert recall.images[0].get_array().filled(np.nan)[0].tolist() == [0.9] * 3
    assert jaccard.images[0].get_array().mask.tolist() == [[False] * 3, [False, True, False]]
    assert "recall 0.850" in recall.get_title()
    assert "Jaccard index 0.750" in jaccard.get_title()


def test_lengths_are_split_by_outcome(make):
    """Broken: a sample is counted twice, or wrong answers as right ones."""
    figure = make.draw("length_histograms", make.example("lengths").records(make))
    assert len(figure.axes) == 6
    prompt, completion, total = figure.axes[:3]
    for axis in (prompt, completion, total):
        right, wrong = axis.containers
        assert (sum(b.get_height() for b in right), sum(b.get_height() for b in wrong)) == (20, 10)
    assert (prompt.containers[0][-1].get_height(), prompt.containers[1][-1].get_height()) == (0, 6)  # 340 to 390
    assert completion.get_title() == "20 right, 10 wrong"
    assert "needle" in prompt.get_title()


def test_maps_mark_what_was_attended(make):
    """Broken: a mark stands at another token or query, or full is covered with marks."""
    figure = make.draw("attention_maps", make.example("maps").records(make))
    panels = {a.get_title().replace("\n", " "): a for a in figure.axes if a.images and a.get_title()}
    assert set(panels) == {"full layer 0", "full layer 4", "topk k=2 layer 0 keeps 80%", "topk k=2 layer 4 keeps 80%"}
    assert not panels["full layer 0"].collections
    axis = panels["topk k=2 layer 0 keeps 80%"]
    (marks,) = axis.collections
    assert marks.get_offsets().tolist() == [[0.5, 0], [1.5, 0], [0.5, 1], [2.5, 1]]
    sizes = marks.get_sizes()
    assert sizes[3] == sizes[0] / 2
    assert axis.images[0].get_array()[1].tolist() == [0.5, 0.2, 0.2, 0.1]
    assert axis.images[0].get_extent() == [0, 4, 1.5, -0.5]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["2", "3"]


def test_thresholds_have_a_line_per_head(make):
    """Broken: lengths and heads are swapped."""
    axes = make.draw("threshold_curves", make.example("maps").records(make)).axes
    assert [a.get_title() for a in axes] == ["pocket\nlayer 0", "pocket\nlayer 1"]
    assert [line.get_label() for line in axes[1].lines] == ["head 0", "head 1"]
    assert [list(line.get_ydata()) for line in axes[1].lines] == [[1.0, 2.0], [3.0, 4.5]]
    assert list(axes[1].lines[0].get_xdata()) == [8, 16]
    assert len({line.get_color() for line in axes[1].lines}) == 2


def test_agreement_by_layer_is_the_mean_of_its_heads(make):
    """Broken: a missing head counts as no agreement."""
    recall, jaccard = make.draw("agreement_layers", make.example("kept_rows").records(make)).axes
    assert (recall.get_ylabel(), jaccard.get_ylabel()) == ("recall", "Jaccard index")
    (line,) = recall.containers
    assert line.get_label() == "loki k=0.25"
    assert list(line[0].get_ydata()) == pytest.approx([0.9, 0.8])
    assert list(jaccard.containers[0][0].get_ydata()) == pytest.approx([0.8, 0.7])
