"""Records by columns: the same as whole, whatever the file holds."""

import json

import numpy as np
import pandas as pd
import pytest

from lacuna.results import frame as frames
from lacuna.results.archive import join, of_frame, open_parquet
from lacuna.results.cell import Cell, Spec
from lacuna.results.record import Record


def record(i, **changes):
    # a task that holds the words at which cells are cut
    args = {"length": 64, "of": {"method": {"name": "x"}, "task": {"name": "y"}, "dtype": "z"}}
    cell = Cell(Spec("m", digest=str(i % 2)), Spec("topk", args={"k": 0.5 + i}), Spec("needle", args=args), seed=i)
    common = {"samples": [{"score": i}], "provenance": {"host": f"h{i % 2}"}, "metrics": {"accuracy": 0.5}}
    return Record(cell, "ok", **{**common, **changes})


@pytest.fixture(scope="module")
def table():
    return frames.to_frame([record(i) for i in range(7)])


@pytest.fixture
def parquet(table, tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "ROW_GROUP", 3)
    frames.write(table, tmp_path / "t.parquet")
    return open_parquet(tmp_path / "t.parquet")


def test_chosen_rows_are_whole(table, parquet):
    """Broken: figures of a large archive are drawn from other records than the chosen ones, or from parts of them."""
    places = np.array([1, 2, 5])
    for archive in (parquet, of_frame(table), join([of_frame(table[:2]), of_frame(table[2:])])):
        pd.testing.assert_frame_equal(
            archive.load(places).reset_index(drop=True), table.iloc[places].reset_index(drop=True), check_dtype=False
        )


def test_specs_are_those_of_the_cells(table, parquet):
    """Broken: a cell is cut at words inside an argument, and counts as another method or version."""
    for archive in (parquet, of_frame(table), join([of_frame(table[:3]), of_frame(table[3:])])):
        for i, text in enumerate(table["cell_json"]):
            for part in ("model", "method", "task"):
                assert archive.specs[part][archive.codes[part][i]] == json.loads(text)[part]


def test_a_survey_reads_no_texts_and_counts_provenance(parquet):
    """Broken: a million ledgers are held in memory to find that there are two hosts."""
    assert not set(frames.TEXTS) & set(parquet.lean.columns)
    assert {json.loads(text)["host"]: count for text, count in parquet.provenance.items()} == {"h0": 4, "h1": 3}


def test_conditions_keep_codes_and_rows_together(table, parquet):
    """Broken: after --where a record has the method of another one."""
    kept = parquet.where(np.arange(7) >= 4)
    assert [kept.specs["method"][c]["args"]["k"] for c in kept.codes["method"]] == [4.5, 5.5, 6.5]
    assert kept.load(np.array([0, 2]))["key"].tolist() == table["key"].iloc[[4, 6]].tolist()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model":{"name":"m"}}', "not json"])
def test_a_cell_of_another_schema_has_no_codes(table, text):
    """Broken: one strange record ends the report, or is counted as some other cell."""
    strange = table.assign(cell_json=[text, *table["cell_json"][1:]])
    archive = of_frame(strange)
    assert [archive.codes[part][0] for part in ("model", "method", "task")] == [-1, -1, -1]
    assert all((archive.codes[part][1:] >= 0).all() for part in ("model", "method", "task"))


def test_a_foreign_parquet_is_one_sentence(tmp_path):
    """Broken: `report` of a wrong file ends in a traceback."""
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "noise.parquet").write_bytes(b"PAR?")
    with pytest.raises(ValueError, match="not a table of records: it has no column 'key'"):
        open_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        open_parquet(tmp_path / "noise.parquet")
