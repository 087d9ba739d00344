"""Figures of what happens inside of a model: by layer, head and row."""

import pytest

from lacuna.analysis.inside import inside
from lacuna.analysis.study import Study
from lacuna.results.frame import to_frame


def test_cells_that_differ_have_labels_that_differ(make):
    """Broken: two budgets, or two settings, are one line."""
    one = make.example("output_error").one
    found = [one(make, "topk", {"k": k}, k, ranks=r) for k in (0.25, 0.5) for r in (1, 2)]
    frame = inside(Study(to_frame(found)), "output_error", "error")
    assert list(frame["where"].unique()) == ["pocket ranks=1", "pocket ranks=2"]
    assert list(frame["method_label"]) == ["topk k=0.5", "topk k=0.25"] * 2


def test_files_are_named_without_their_folders(make):
    """Broken: of several files half a name is left, or the same text in two folders looks like two texts."""
    files = (["old/a.tar", "old/b.tar"], ["new/a.tar"])
    texts = [{"corpus": c, "heldout": f"{c[0][:3]}/val.gz", "tokens": 1} for c in files]
    found = [make.record(make.cell("full", {}, "train", t), {"loss": 1.0}, [{"tokens": 1, "loss": 1.0}]) for t in texts]
    frame = inside(Study(to_frame(found)), "train", "tokens", "loss")
    assert sorted(frame["asked"]) == ["corpus=a.tar", "corpus=a.tar, b.tar"]


def test_samples_without_the_fields_are_no_analysis(make):
    """Broken: records of an older version end in a KeyError instead of a sentence."""
    found = make.record(make.cell("topk", {}, "output_error"), {"output_error": 0.1}, [{"layer": 0}])
    with pytest.raises(ValueError, match="needs a cell of the task output_error"):
        inside(Study(to_frame([found])), "output_error", "layer", "error")


def test_output_error_is_a_line_per_budget_over_layers(make):
    """Broken: layers are out of order, or budgets of a method look like different methods."""
    axis = make.draw("output_error", make.example("output_error").records(make)).axes[0]
    lines = {c.get_label(): c for c in axis.containers}
    assert list(lines) == ["full", "loki k=0.25", "topk k=0.5", "topk k=0.25"]
    assert list(lines["topk k=0.5"][0].get_xdata()) == [0, 1, 2]
    assert list(lines["topk k=0.5"][0].get_ydata()) == pytest.approx([0.05, 0.1, 0.15])
    colours = {name: lines[name][0].get_color() for name in lines}
    assert colours["topk k=0.5"] == colours["topk k=0.25"] != colours["loki k=0.25"]
    low, high = lines["topk k=0.5"][2][0].get_segments()[2][:, 1]
    assert (low, high) == pytest.approx((0.135, 0.165))


def test_lines_beyond_what_is_read_are_counted(make):
    """Broken: fifty lines are drawn over each other, or the others vanish without a word."""
    one = make.example("output_error").one
    figure = make.draw("output_error", [one(make, "topk", {"k": k}, 0.5) for k in range(1, 21)])
    assert len(figure.axes[0].containers) == 16
    assert [t.get_text() for t in figure.axes[0].texts] == ["16 of 20 methods; --where chooses others"]


def test_ranks_stand_at_their_layer_and_head(make):
    """Broken: layers and heads are swapped, or two panels have two scales."""
    figure = make.draw("rank_heads", make.example("spectra").records(make))
    axes = [a for a in figure.axes if a.images]
    assert len(axes) == 4
    assert axes[0].images[0].get_array().tolist() == [[4, 9], [5, 9], [6, 9]]
    assert {a.images[0].get_clim() for a in axes} == {(0, 9)}
    assert [t.get_text() for t in axes[0].texts] == ["4", "9", "5", "9", "6", "9"]
    assert len({a.get_title() for a in axes}) == 4


def test_spectra_of_corpora_are_overlaid(make):
    """Broken: a corpus has another colour in each layer, or before and after the rotary embedding look alike."""
    axes = make.draw("eigen_spectra", make.example("spectra").records(make)).axes
    assert [a.get_title() for a in axes] == [f"pocket, layer {i}" for i in range(3)]
    for axis in axes:
        assert len(axis.lines) == 4
        assert len({line.get_color() for line in axis.lines}) == 2
        assert {line.get_linestyle() for line in axis.lines} == {"-", "--"}
        assert list(axis.lines[0].get_ydata()) == [0.5, 0.2, 0.1, 0.05]


def test_similarity_has_a_field_per_pair_of_corpora(make):
    """Broken: the basis of one corpus is shown as the other's."""
    records = [r for r in make.example("spectra").records(make) if r.cell.task.name == "basis_similarity"]
    figure = make.draw("basis_similarity", records[:2] + records[3:])
    overlap, held = (a for a in figure.axes if a.images)
    assert [t.get_text() for t in overlap.get_yticklabels()] == ["code", "prose"]
    assert overlap.images[0].get_array().tolist() == [[1.0, 0.5], [None, 1.0]]
    assert "by chance 0.25" in overlap.get_title()
    assert "variance held" in held.get_title()


def test_transfer_has_a_row_per_calibration_and_full_below(make):
    """Broken: a loss is held against full on another corpus."""
    records = make.example("spectra").transfer(make)
    (axis,) = (a for a in make.draw("calibration_transfer", records).axes if a.images)
    assert [t.get_text() for t in axis.get_yticklabels()] == ["code", "prose", "full (dense)"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["code", "prose"]
    assert len(axis.texts) == 6
    assert sum("\n" not in t.get_text() for t in axis.texts) == 2
    assert (axis.images[0].get_array()[:2] > 0).all()


def test_one_corpus_is_no_transfer(make):
    """Broken: a matrix of one row says that calibrations transfer."""
    records = [r for r in make.example("spectra").transfer(make) if "code" not in str(r.cell.method.args)]
    with pytest.raises(ValueError, match="needs a cell that ended well of a method calibrated"):
        make.draw("calibration_transfer", records)


def test_ranks_of_models_stand_side_by_side(make):
    """Broken: a model's ranks stand over another one's name, or the deviation is another number's."""
    spectra = make.example("spectra").spectra
    axis = make.draw("rank_models", [spectra(make, "prose", "pre"), spectra(make, "prose", "post")]).axes[0]
    marks = {c.get_label(): c for c in axis.containers}
    assert set(marks) == {"rotary=pre", "rotary=post"}
    assert list(marks["rotary=pre"][0].get_ydata()) == pytest.approx([7.0])
    low, high = marks["rotary=pre"][2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx((26 / 6) ** 0.5)  # of 4, 9, 5, 9, 6, 9
    assert [t.get_text() for t in axis.get_xticklabels()] == ["pocket"]
    assert [list(line.get_ydata()) for line in axis.lines if line.get_label() == "dimension of a head"] == [[8, 8]]
