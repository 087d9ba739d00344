"""The scripts that train on GPUs, as far as a CPU can try them."""

import importlib.util
import re
from types import SimpleNamespace

import pytest
import yaml

from lacuna.results.plugins import ROOT

HERE = ROOT / "tests" / "gpu"


def training(key, losses, ranks=1, sums="ordered"):
    points = [{"step": n, "loss": loss, "tok_s": 1e6} for n, loss in enumerate(losses)]
    cell = SimpleNamespace(task=SimpleNamespace(name="train", args={"sums": sums}), ranks=ranks)
    return SimpleNamespace(key=key, cell=cell, status="ok", reason="", samples=points)


@pytest.fixture
def verdict(monkeypatch):
    """What curves.py says of two trainings."""
    spec = importlib.util.spec_from_file_location("curves", HERE / "curves.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def judge(*records):
        monkeypatch.setattr(module, "Store", lambda _: SimpleNamespace(records=lambda: records))
        return module.main(["store"])

    return judge


def test_curves_that_part_are_told(verdict):
    """Ranks that see other text, or a run that went on from the wrong state, would pass for the same training."""
    assert verdict(training("a", [5.0, 4.0]), training("b", [5.001, 4.002], ranks=2)) == 0
    assert verdict(training("a", [5.0, 4.0]), training("b", [5.0, 4.5], ranks=2)) == 1
    assert verdict(training("a", [5.0, 4.0]), training("a", [5.0, 4.0])) == 0
    assert verdict(training("a", [5.0, 4.0]), training("a", [5.0, 4.0001])) == 1
    assert verdict(*(training("a", [5.0, last], sums="free") for last in (4.0, 4.0001))) == 0
    assert verdict(*(training("a", [5.0, last], sums="free") for last in (4.0, 4.5))) == 1
    with pytest.raises(SystemExit, match="other points"):
        verdict(training("a", [5.0, 4.0]), training("b", [5.0]))
    with pytest.raises(SystemExit, match="there is no training"):
        verdict()


def test_parts_of_landmarks_tables_share_no_model():
    """A table would be left out, or its model trained twice, where the parts run side by side."""
    script = (HERE / "landmark.sh").read_text(encoding="utf-8")
    (said,) = re.findall(r"blocks=\((.*)\)", script)
    parts = [
        [int(n) for n in quoted.split() or [bare]] for quoted, bare in re.findall(r'\]=(?:"([\d ]+)"|(\d+))', said)
    ]
    blocks = yaml.safe_load((ROOT / "jobs" / "sweeps" / "landmark.yaml").read_text(encoding="utf-8"))["blocks"]
    assert sorted(n for part in parts for n in part) == list(range(len(blocks)))
    models = [{yaml.safe_dump(blocks[n]["model"]) + yaml.safe_dump(blocks[n]["task"]) * ("new" in blocks[n]["model"])
               for n in part} for part in parts]  # fmt: skip
    assert sum(map(len, models)) == len(set().union(*models))
