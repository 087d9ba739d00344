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


@pytest.mark.slow
def test_pocket_landmark_retrieves_beyond_what_it_was_trained_on(tmp_path):
    """Weights of another run, or without their landmark token, would read twice their length and find nothing."""
    sweep = {
        "model": "pocket-landmark",
        "method": {"landmark": {"chunk": 252, "rows": 567}},
        "task": {"needle": {"length": 1024, "repeats": 1}},
    }
    (tmp_path / "s.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    store = Store(tmp_path / "s")
    (cell,) = read(tmp_path / "s.yaml", store).cells
    run_cells([cell], store, Ranks(), lambda _: None)
    record = store.get(cell.key)
    assert record.status == "ok", record.trace
    assert record.metrics["accuracy"] >= 0.8


def test_pocket_landmark_knows_its_tokens():
    """A tokenizer of another run would give the landmark's number to a piece of text."""
    model, tokenizer = load_model(Spec("pocket-landmark", source=str(LANDMARK)), "float32", "cpu")
    said = Landmarked.of(model.config)
    assert tokenizer.convert_ids_to_tokens([said.token, said.control]) == ["<|landmark|>", "<|control|>"]
    assert f"block: {said.block}" in (LANDMARK / "README.md").read_text(encoding="utf-8")
    assert (said.block, said.length) == (63, 504)
