"""What a calibration takes from the method that needs it, on the suite's own plug-ins."""

from pathlib import Path

import pytest

from lacuna.jobs.sweep import SweepError, read

HEAD = "model: pocket\ntask: perplexity\nmethod: "


def sweep(folder, text):
    path = Path(folder) / "sweep.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    return read(path, Path(folder) / "store")


def test_thresholds_are_of_the_methods_own_budget(tmp_path):
    """Thresholds calibrated for another budget than the method's would say one and keep another."""
    found = sweep(tmp_path, "{top_theta: {rows: [32, 64], placement: post, thresholds: {sigma: 0.5}}}\n")
    assert [(c.task.args["rows"], c.task.args["placement"], c.task.args["sigma"]) for c in found.needed] == [
        (32, "post", 0.5),
        (64, "post", 0.5),
    ]
    assert [dict(c.needs)["thresholds"] for c in found.cells] == [c.key for c in found.needed]
    assert all("rows" not in c.method.args["thresholds"] for c in found.cells)


def test_compensations_share_a_calibration(tmp_path):
    """What does not change the thresholds must not cost another calibration."""
    found = sweep(tmp_path, "{top_theta: {sdc: [none, exact, offline]}}\n")
    assert (len(found.cells), len(found.needed)) == (3, 1)


def test_a_calibration_needs_the_methods_own_basis(tmp_path):
    """Low-rank thresholds under another basis than the method's are thresholds of other scores."""
    found = sweep(tmp_path, "{loki_theta: {d: 0.5, basis: {rotary: pre}}}\n")
    (cell,), needed = found.cells, {c.task.name: c for c in found.needed}
    assert dict(cell.needs) == {
        name: needed[task].key for name, task in (("basis", "pca"), ("thresholds", "thresholds"))
    }
    assert needed["thresholds"].needs == (("basis", needed["pca"].key),)
    assert needed["pca"].task.args["rotary"] == "pre"
    assert needed["thresholds"].task.args["d"] == 0.5


def test_what_is_the_methods_own_cannot_be_given_twice(tmp_path):
    """A setting that is ignored is an error."""
    with pytest.raises(SweepError, match="no argument 'rows'"):
        sweep(tmp_path, "{top_theta: {rows: 32, thresholds: {rows: 64}}}\n")
