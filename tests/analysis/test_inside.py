"""Figures of what happens inside of a model: by layer, head and row."""

import importlib.util
from pathlib import Path

import pytest

from lacuna.analysis.inside import inside
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame


def example(name):
    path = Path(__file__).parent / "records" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"records_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(name, records):
    return plugins.load("figures", name).draw(Study(to_frame(records)))


def test_cells_that_differ_have_labels_that_differ(make):
    """Broken: two budgets, or two settings, are one line."""
    one = example("output_error").one
    found = [one(make, "topk", {"k": k}, k, ranks=r) for k in (0.25, 0.5) for r in (1, 2)]
    frame = inside(Study(to_frame(found)), "output_error", "error")
    assert list(frame["where"].unique()) == ["pocket ranks=1", "pocket ranks=2"]
    assert list(frame["method_label"]) == ["topk k=0.5", "topk k=0.25"] * 2


def test_samples_without_the_fields_are_no_analysis(make):
    """Broken: records of an older version end in a KeyError instead of a sentence."""
    found = make.record(make.cell("topk", {}, "output_error"), {"output_error": 0.1}, [{"layer": 0}])
    with pytest.raises(ValueError, match="needs a cell of the task output_error"):
        inside(Study(to_frame([found])), "output_error", "layer", "error")


def test_output_error_is_a_line_per_budget_over_layers(make):
    """Broken: layers are out of order, or budgets of a method look like different methods."""
    axis = draw("output_error", example("output_error").records(make)).axes[0]
    lines = {c.get_label(): c for c in axis.containers}
    assert list(lines) == ["full", "loki k=0.25", "topk k=0.5", "topk k=0.25"]
    assert list(lines["topk k=0.5"][0].get_xdata()) == [0, 1, 2]
    assert list(lines["topk k=0.5"][0].get_ydata()) == pytest.approx([0.05, 0.1, 0.15])
    colours = {name: lines[name][0].get_color() for name in lines}
    assert colours["topk k=0.5"] == colours["topk k=0.25"] != colours["loki k=0.25"]
    low, high = lines["topk k=0.5"][2][0].get_segments()[2][:, 1]
    assert (low, high) == pytest.approx((0.135, 0.165))
