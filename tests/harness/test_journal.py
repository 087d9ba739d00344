"""A cell that was killed goes on where it was, and ends as if nothing had happened."""

import json

import pytest

from lacuna.harness import journal as journals
from lacuna.harness.journal import Journal, spoken
from lacuna.harness.lm import Session
from lacuna.harness.ranks import Ranks
from lacuna.harness.world import World

SWEEP = "method: {topk: {rows: 8}}\ntask: {needle: {length: 128, depths: [0.0, 0.5, 1.0], repeats: 2}}\n"


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def plain(record):
    """What a record says, without what the clock says."""
    samples = [{k: v for k, v in s.items() if k != "answer_s"} for s in record.samples]
    metrics = {k: v for k, v in record.metrics.items() if k != "answer_s_mean"}
    return record.status, metrics, samples, record.ledger


def test_a_killed_cell_goes_on_where_it_was(sweep, run, store, monkeypatch):
    """Hours of a long cell would be lost to a time limit, or counted twice when it goes on."""
    from lacuna.harness import generation

    monkeypatch.setattr(generation, "TOKENS_AT_ONCE", 300)  # two texts a batch at most
    swept = sweep(SWEEP)
    (key,) = swept.keys()
    whole = plain(next(iter(run(swept)[0].values())))
    store._path("records", key, ".json").unlink()
    fed, own = [], Session.start

    def start(self, texts):
        if len(fed) == 2:
            raise Killed
        fed.append(texts)
        return own(self, texts)

    monkeypatch.setattr(Session, "start", start)
    with pytest.raises(Killed):
        run(swept)
    assert store.head(key) is None
    lines = store.unfinished(key).read_text().splitlines()
    done = sum(len(json.loads(line)["samples"]) for line in lines)
    assert 2 <= done < 6
    with store.unfinished(key).open("a") as file:
        file.write(lines[0][:50])  # the end came while a line was written
    fed.clear()
    monkeypatch.setattr(Session, "start", lambda self, texts: fed.append(texts) or own(self, texts))
    records, told = run(swept)
    assert sum(map(len, fed)) == 6 - done  # what is done is not done again
    assert plain(next(iter(records.values()))) == whole
    assert any(f"after {done} samples" in line for line in told)
    assert not store.unfinished(key).exists()


def test_a_timed_out_cell_keeps_what_it_has(sweep, run, store, monkeypatch):
    """A cell that is longer than its time limit would never end, however often it is run again."""
    from lacuna.harness.deadline import CellTimeoutError

    def start(_self, _texts):
        raise CellTimeoutError("took longer than 1 s")

    swept = sweep(SWEEP)
    store.begin()
    path = store.unfinished(swept.keys()[0])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"samples": [], "sums": [[[[0.0] * 6] * 3] * 8], "done": 0}) + "\n")
    monkeypatch.setattr(Session, "start", start)
    records, _ = run(swept)
    assert [r.status for r in records.values()] == ["timeout"]
    assert path.exists()


def test_time_left_is_told(monkeypatch):
    """Nobody knows whether to wait for a cell of a thousand samples or to go home."""
    now = [0.0]
    monkeypatch.setattr(journals.time, "monotonic", lambda: now[0])
    told = []
    journal = Journal(tell=told.append)
    items = [type("I", (), {"id": str(i)})() for i in range(10)]

    def work(batch):
        now[0] += 15
        return [{"score": 1}] * len(batch)

    samples = journal.each(items, lambda todo: ([i] for i in todo), work, lambda: None)
    assert [s["id"] for s in samples] == [str(i) for i in range(10)]
    assert told[0].strip() == "2 of 10 samples, about 2 min 0 s left"
    assert len(told) == 4
    assert spoken(7260) == "2 h 1 min"


def test_samples_of_one_name_are_refused():
    """One of two would be taken for the other, and never measured."""
    twins = [type("I", (), {"id": "a"})() for _ in range(2)]
    with pytest.raises(ValueError, match="2 samples are named 'a'"):
        Journal().each(twins, lambda todo: [list(todo)], lambda batch: [{}] * len(batch), lambda: None)


def test_an_unfinished_file_that_is_damaged_costs_only_what_is_damaged(tmp_path):
    """Half a line would stop the cell for good, or let a sample in that was never measured."""
    path = tmp_path / "k.jsonl"
    good = json.dumps({"samples": [{"id": "a", "score": 1}], "sums": [[[[1.0] * 6] * 3]], "done": 1})
    path.write_text(good + "\n" + good.replace('"a"', '"b"')[:-5] + "\n" + good.replace('"a"', '"c"') + "\n")
    found = Journal.open(path, World(Ranks(), "cpu"), lambda _: None)
    assert set(found.done) == {"a"}
    assert path.read_text() == good + "\n"


def test_lines_of_two_processes_do_not_make_one_ledger(tmp_path):
    """Two runs of one cell, both killed, would leave the samples of one and the bytes read by the other."""
    path = tmp_path / "k.jsonl"

    def line(names, done, count):
        return json.dumps({"samples": [{"id": n} for n in names], "sums": [[[[count] * 6] * 3]], "done": done}) + "\n"

    path.write_text(line("a", 1, 1.0) + line("b", 2, 2.0) + line("c", 3, 3.0) + line("b", 2, 2.0) + line("d", 4, 4.0))
    journal = Journal.open(path, World(Ranks(), "cpu"), lambda _: None)
    assert set(journal.done) == set("abc")
    assert journal.before[0, 0, 0] == 3.0
    assert path.read_text().count("\n") == 3
