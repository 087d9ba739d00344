"""Records as a table, and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from lacuna.results import frame as frames
from lacuna.results import plugins
from lacuna.results.cell import Cell, Spec
from lacuna.results.record import Record

LEDGER = {
    "decode": {"density": 0.3, "bytes_read_per_token": 10.0, "bytes_dense_per_token": 40.0, "tokens": 7},
    "bytes_held": 5.0,
    "bytes_held_dense": 4.0,
    "layers": [{"density": 0.3}],
}


def record(method=None, status="ok", **changes):
    cell = Cell(Spec("pocket"), method or Spec("full"), Spec("needle", args={"length": 256}), needs=(("basis", "0a"),))
    common = {"metrics": {"accuracy": 0.1 + 0.2}, "samples": [{"score": 1, "reply": 'a,\n"b"'}], "ledger": LEDGER}
    origin = {"provenance": {"host": "n1", "gpu": None, "packages": {"torch": "2"}}, "started": "2026", "seconds": 1.5}
    return Record(cell, status, **{**common, **origin, **changes})


MIXED = [
    record(Spec("topk", args={"k": 64, "layers": [1, 2]})),
    record(Spec("topk", args={"k": 0.25, "sinks": None, "sure": True})),
    record(
        status="oom", reason='out, of "memory"\r\nat é', trace="line 1\n\tline 2\n", metrics={}, samples=[], ledger={}
    ),
    record(metrics={"seconds": 3.0}, artifact={"sha256": "ab", "bytes": 3}),
]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_table_survives_its_file(tmp_path, suffix):
    """Broken: a collected archive says other numbers, or has other types, than the records it was made from."""
    table = frames.to_frame(MIXED)
    frames.write(table, tmp_path / f"t{suffix}")
    assert_frame_equal(frames.read(tmp_path / f"t{suffix}"), table)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_records_come_back_whole(tmp_path, suffix):
    """Broken: something of a record is lost in the archive, and can never be analysed again."""
    frames.write(frames.to_frame(MIXED), tmp_path / f"t{suffix}")
    assert [r.to_json() for r in frames.to_records(frames.read(tmp_path / f"t{suffix}"))] == [
        {**r.to_json(), "samples": list(r.samples)} for r in MIXED
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_no_records_are_a_table_too(tmp_path, suffix):
    """Broken: collecting an empty sweep ends in a traceback, or its file cannot be read."""
    table = frames.to_frame([])
    frames.write(table, tmp_path / f"t{suffix}")
    assert_frame_equal(frames.read(tmp_path / f"t{suffix}"), table)
    assert list(frames.COLUMNS) == [c for c in table.columns if c in frames.COLUMNS]


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.floats(allow_nan=False))
def test_any_text_and_number_survives_csv(tmp_path_factory, text, number):
    """Broken: a reason with odd characters or a number with many digits is another one after `collect`."""
    path = tmp_path_factory.mktemp("any") / "t.csv"
    table = frames.to_frame([record(reason=text, metrics={"accuracy": number}), record(Spec("x", args={"a": text}))])
    frames.write(table, path)
    assert_frame_equal(frames.read(path), table)


def test_arguments_and_measures_have_columns():
    """Broken: a table cannot be filtered by budget or length, or its density is not the ledger's."""
    table = frames.to_frame(MIXED)
    assert table["method.k"].tolist()[:2] == [64.0, 0.25]
    assert table["task.length"].tolist() == [256.0] * 4
    assert table["density"].tolist()[0] == 0.3
    assert table["metric.seconds"].tolist()[3] == 3.0
    assert table["seconds"].tolist()[3] == 1.5
    assert set(frames.metrics(table)) == {"accuracy", "metric.seconds"}


def test_label_shows_budgets_and_what_is_not_default(tmp_path, monkeypatch):
    """Broken: two budgets of a method have one name in a table, or every name is as long as its argument list."""
    body = 'class M:\n    k: Annotated[float, Share("x")] | None = 0.25\n    sinks: int = 4\n    rule: str = "row"\n'
    (tmp_path / "lab.py").write_text(body)
    monkeypatch.setitem(plugins.FOLDERS, "methods", str(tmp_path))
    args = {"rule": "row", "k": 0.25, "sinks": 8, "basis": {"text": "prose"}}
    assert frames.label("methods", Spec("lab", args=args)) == "lab k=0.25 sinks=8"
    assert frames.label("methods", Spec("gone", args={"w": [1, 2]})) == "gone w=1,2"


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(28, "disk full"), r"disk full: .*t\.csv"), (OSError("disk full"), "^disk full$")],
    ids=["numbered", "worded"],
)
def test_an_interrupted_write_keeps_the_old_table(tmp_path, monkeypatch, error, said):
    """Broken: a full disk or a kill in `collect` leaves half an archive where a good one was, or does not say why."""
    path = tmp_path / "t.csv"
    frames.write(frames.to_frame(MIXED[:1]), path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match=said):
        frames.write(frames.to_frame(MIXED), path)
    assert len(frames.read(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "no such file"),
        ("other.csv", b"a,b\n1,2\n", "not a table of records: it has no column 'key'"),
        ("noise.parquet", b"PAR?", "cannot be read as parquet"),
        ("empty.csv", b"", "cannot be read as csv"),
        ("bytes.csv", b"\xff\xfe\x00key", "cannot be read as csv"),
        ("t.xlsx", b"", "is a .parquet or .csv file"),
    ],
)
def test_a_foreign_file_is_one_sentence_with_the_mend(tmp_path, name, content, said):
    """Broken: `report` of a wrong file ends in a traceback, or in a page without cells."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        frames.read(tmp_path / name)
    assert "lacuna collect" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_suffix_is_refused(tmp_path):
    """Broken: `collect -o t.xlsx` writes a CSV file under a wrong name."""
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        frames.write(frames.to_frame([]), tmp_path / "t.xlsx")
