"""The models that ship do what their cards say."""

import json

import pytest

from lacuna.harness.ranks import Ranks
from lacuna.harness.run import run_cells
from lacuna.jobs.sweep import read
from lacuna.models.landmark import Landmarked
from lacuna.models.load import load_model
from lacuna.results.cell import Spec
from lacuna.results.plugins import ROOT
from lacuna.results.store import Store

LANDMARK = ROOT / "models" / "zoo" / "pocket-landmark"


def accuracy(folder, model, method, tasks):
    """Of each task, on the CPU."""
    (folder / "s.yaml").write_text(json.dumps({"model": model, "method": method, "task": tasks}), encoding="utf-8")
    store = Store(folder / "s")
    cells = read(folder / "s.yaml", store).cells
    run_cells(cells, store, Ranks(), lambda _: None)
    records = [store.get(cell.key) for cell in cells]
    assert [r.status for r in records] == ["ok"] * len(tasks), records[0].trace
    return [r.metrics["accuracy"] for r in records]


@pytest.mark.slow
def test_pocket_landmark_retrieves_beyond_what_it_was_trained_on(tmp_path):
    """Weights of another run, or without their landmark token, would read twice their length and find nothing."""
    tasks = [{"needle": {"length": 1024, "repeats": 1}}, {"passkey": {"length": 1024, "samples": 5}}]
    assert min(accuracy(tmp_path, "pocket-landmark", {"landmark": {"chunk": 252, "rows": 567}}, tasks)) >= 0.8


@pytest.mark.slow
def test_pocket_does_what_methods_may_lose(tmp_path):
    """Where the dense model fails already, no method can be told from another."""
    tasks = [
        {"needle": {"length": 1024, "keys": 8, "repeats": 1}},
        {"ruler": {"kind": "vt", "length": 1024, "samples": 5}},
        {"ruler": {"kind": "fwe", "length": 1024, "samples": 5}},
    ]
    assert min(accuracy(tmp_path, "pocket", "full", tasks)) >= 0.8


def test_pocket_landmark_knows_its_tokens():
    """A tokenizer of another run would give the landmark's number to a piece of text."""
    model, tokenizer = load_model(Spec("pocket-landmark", source=str(LANDMARK)), "float32", "cpu")
    said = Landmarked.of(model.config)
    assert tokenizer.convert_ids_to_tokens([said.token, said.control]) == ["<|landmark|>", "<|control|>"]
    assert f"block: {said.block}" in (LANDMARK / "README.md").read_text(encoding="utf-8")
    assert (said.block, said.length) == (63, 504)
