"""Data in every form that it comes in, and one sentence for each way in which it is wrong."""

import gzip

import pyarrow as pa
import pytest
from pyarrow import parquet

from lacuna.cli import main
from lacuna.harness import rows
from lacuna.harness.rows import hub_revision, read_rows
from lacuna.jobs.sweep import SweepError, read
from lacuna.results.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TWO = [{"text": "one\u2028line", "n": "1"}, {"text": "two", "n": "2"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.parquet"])
def test_every_form_gives_the_same_rows(tmp_path, name):
    """A result would depend on how the data was packed."""
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet.write_table(pa.Table.from_pylist(TWO), path)
    else:
        lines = '{"text": "one\u2028line", "n": "1"}\n\n{"text": "two", "n": "2"}\n'
        raw = (lines if "jsonl" in name else 'text,n\n"one\u2028line",1\ntwo,2\n').encode()
        path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read_rows(str(path), ("text",)) == TWO
    assert rows.first_row(path) == TWO[0]


def test_plain_text_is_one_document(tmp_path):
    """Own text is what people try first."""
    (tmp_path / "own.txt").write_text("a\n\nb")
    assert [r["text"] for r in read_rows(str(tmp_path / "own.txt"))] == ["a\n\nb"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no rows"),
        (b"[1]\n", "expected a JSON object, found list"),
        (b'{"text": \n', "expected a JSON object"),
        (b'{"body": 1}\n', "lacks the field 'text'; it has: body"),
        (b"\xff\xfe\n", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, said):
    """A traceback from deep inside a job says neither which file nor what it lacks."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_rows(str(path), ("text",))


def test_names_of_the_hub_are_pinned():
    """A dataset that moves under a fixed key gives two results one name."""
    assert hub_revision(f"hub:a/b@{COMMIT}:en:validation[:10%]") == COMMIT
    assert hub_revision("books/a.jsonl") is None
    for wrong in ("hub:a/b@main:en:test", "hub:a/b", f"hub:b@{COMMIT}::test"):
        with pytest.raises(ValueError, match="expected hub:ORG/NAME@COMMIT:CONFIG:SPLIT"):
            hub_revision(wrong)


def test_without_a_network_the_hub_is_one_sentence(monkeypatch):
    """Fifty lines of a library's traceback hide that a node has no network."""
    import datasets

    def none(*_args, **_more):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", none)
    with pytest.raises(ValueError, match=r"ConnectionError: Couldn't reach the Hub\): it needs the network once"):
        read_rows(f"hub:a/b@{COMMIT}::test")


def test_rows_of_the_hub_come_through_datasets(monkeypatch):
    """Configuration, split and commit must reach the library as they were asked for."""
    import datasets

    asked = []

    def load(repo, config, split, revision):
        asked.append((repo, config, split, revision))
        return datasets.Dataset.from_list(TWO)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows(f"hub:c/d@{COMMIT}:en:test") == TWO
    assert asked == [("c/d", "en", "test", COMMIT)]


def test_data_is_found_in_the_folder_of_data(tmp_path):
    """A sweep names files by layout, and each user keeps them elsewhere; the key must not say where."""
    text = "model: pocket\nmethod: full\ntask: {perplexity: {corpus: two/a.txt, window: 8}}\n"
    (tmp_path / "s.yaml").write_text(text)
    keys = []
    for home in ("one", "other"):
        folder = tmp_path / home / "two"
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("what there is to read")
        keys.append(read(tmp_path / "s.yaml", Store(tmp_path / "store"), (), tmp_path / home).cells[0].key)
    assert keys[0] == keys[1]
    with pytest.raises(SweepError, match=r"no data 'two/a.txt' .*that path: there is"):
        read(tmp_path / "s.yaml", Store(tmp_path / "store"))


def test_optional_data_are_pinned_too(tmp_path):
    """A test set that may be left out would be answered from the store after it was changed."""
    (tmp_path / "s.yaml").write_text(
        "model: pocket\nmethod: full\ntask: {lm_eval: {task: gsm8k, data: a.jsonl, shots: 0}}\n"
    )
    keys = set()
    for number in range(2):
        (tmp_path / "a.jsonl").write_text(f'{{"question": "{number}", "answer": "#### 1"}}\n')
        (cell,) = read(tmp_path / "s.yaml", Store(tmp_path / "store")).cells
        assert cell.task.args["data"] == str(tmp_path / "a.jsonl")
        keys.add(cell.key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("argument", "said"),
    [("nothing.jsonl", "no data 'nothing.jsonl'"), ("empty.jsonl", "has no rows"), ("hub:a/b:test", "expected hub:")],
)
def test_bad_data_is_one_sentence_and_code_2(tmp_path, capsys, argument, said):
    """Scripts look at the code, people at the sentence, and neither should wait for a job to fail."""
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "s.yaml").write_text(f'model: pocket\nmethod: full\ntask: {{perplexity: {{corpus: "{argument}"}}}}\n')
    assert main(["plan", str(tmp_path / "s.yaml"), "--store", str(tmp_path / "store")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("perplexity: {corpus: rows.jsonl, field: body}", "lacks the field 'body'; it has: question, prompt"),
        ("needle: {haystack: rows.jsonl}", "lacks the field 'text'"),
        ("ruler: {kind: qa_1, documents: rows.jsonl}", "lacks the field 'answers'"),
        ("longbench: {task: trec, data: rows.jsonl}", "lacks the field 'context'"),
        ("humaneval: {data: rows.jsonl}", "lacks the field 'task_id'"),
        ("mbpp: {data: rows.jsonl}", "lacks the field 'task_id'"),
        ("perplexity: {corpus: rows.jsonl, field: question}", ""),
        ("longbench: {task: trec, data: mini.jsonl}", ""),  # MiniLongBench's columns are as good
    ],
)
def test_a_missing_column_is_told_before_anything_runs(tmp_path, capsys, task, said):
    """A job would wait for hours in a queue, to say that a column has another name."""
    (tmp_path / "rows.jsonl").write_text('{"question": "who?", "prompt": "x"}\n')
    (tmp_path / "mini.jsonl").write_text('{"task": "trec", "prompt": "x", "gold": []}\n')
    (tmp_path / "s.yaml").write_text(f"model: pocket\nmethod: full\ntask: {{{task}}}\n")
    assert main(["plan", str(tmp_path / "s.yaml"), "--store", str(tmp_path / "store")]) == (2 if said else 0)
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == bool(said)
