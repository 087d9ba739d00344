"""The store: what is written is read again, what is damaged is said, and nothing is lost."""

import errno
import json
import os
import stat
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from lacuna.results.cell import Cell, Spec
from lacuna.results.record import Record
from lacuna.results.store import MARK, Store, StoreError, write_atomically

CELL = Cell(Spec("m", digest="d", source="/a"), Spec("topk", 1, {"k": 0.25}), Spec("needle", 1, {"length": 512}))


def record(seed=0, status="ok", **changes):
    return Record(replace(CELL, seed=seed), status, **changes)


def test_round_trip(tmp_path):
    """What comes back must be what was measured, to the last digit."""
    store, full = Store(tmp_path / "s"), record(metrics={"x_ms": 0.1 + 0.2}, samples=[{"a": "é\n\r"}], reason="")
    store.put(full)
    assert Store(tmp_path / "s").get(full.key) == full
    assert list(store.records()) == [full]


def test_ok_is_never_replaced_by_worse(tmp_path):
    """A job that is preempted while another finished the cell must not take the result away."""
    store = Store(tmp_path / "s")
    store.put(record(status="error", reason="first"))
    store.put(record(metrics={"x": 1.0}))
    store.put(record(status="preempted", reason="late"))
    assert store.get(record().key).metrics == {"x": 1.0}
    assert store.head(record().key).status == "ok"


@pytest.mark.parametrize("where", ["head", "body", "cut", "empty"])
def test_damage_is_said(tmp_path, where):
    """A flipped bit or half a file must stop with the file's name, never become a number."""
    store = Store(tmp_path / "s")
    path = store.put(record(metrics={"accuracy": 0.5}))
    text = path.read_text()
    damaged = {
        "head": text.replace('"status": "ok"', '"status": "fine"', 1),
        "body": text.replace("0.5", "0.6"),
        "cut": text[: len(text) // 2],
        "empty": "",
    }[where]
    path.write_text(damaged)
    with pytest.raises(StoreError, match=rf"{record().key}\.json .*delete it"):
        store.get(record().key) if where in ("body", "cut") else store.head(record().key)


def test_another_folder_is_refused(tmp_path):
    """Writing into a folder that holds something else could overwrite it."""
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="not a lacuna store"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="not a lacuna store"):
        Store(tmp_path / "thesis.txt")


def test_a_store_that_another_rank_just_makes_is_taken(tmp_path, monkeypatch):
    """Of two ranks that begin with a new store one would refuse it, and the other wait for it until it is killed."""
    (tmp_path / ".tmp-1-0123").write_bytes(b"")
    Store(tmp_path)
    listed = type(tmp_path).iterdir

    def then_marked(folder):
        (tmp_path / ".tmp-1-0123").rename(tmp_path / "lacuna-store.json")
        return listed(folder)

    monkeypatch.setattr(type(tmp_path), "iterdir", then_marked)
    Store(tmp_path)


@pytest.mark.parametrize(("mark", "words"), [('{"format": 99}', "has format 99"), ("no json", "cannot be read")])
def test_another_format_is_refused(tmp_path, mark, words):
    """A store of another version must not be read as if it were this one's."""
    (tmp_path / MARK).write_text(mark)
    with pytest.raises(StoreError, match=words):
        Store(tmp_path)


def _write(args):
    root, numbers = args
    for n in numbers:
        Store(root).put(record(n))


def test_many_writers(tmp_path):
    """Array jobs write at the same time, some of them the same key."""
    root = tmp_path / "s"
    Store(root).begin()
    with ProcessPoolExecutor(4) as pool:
        list(pool.map(_write, [(root, range(i * 5, i * 5 + 20)) for i in range(4)]))
    assert len(list(Store(root).records())) == 35
    assert not list(root.rglob(".tmp-*"))


def test_a_cell_that_makes_no_artifact_is_not_called_damaged(tmp_path):
    """`lacuna weights export` of a measurement would send its user to delete a record that is sound."""
    store = Store(tmp_path / "s")
    store.put(record())
    with pytest.raises(StoreError, match=r"makes no artifact$"):
        store.get_artifact(record().key)


def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path, monkeypatch):
    """A full disk would be told of a draft that nobody has heard of, or of no file at all."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "record.json", b"numbers")
    assert caught.value.filename == str(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


def test_artifacts_are_checked(tmp_path):
    """A calibration whose bits changed, or whose cell failed, must not be used."""
    store = Store(tmp_path / "s")
    with pytest.raises(StoreError, match="missing; run it first"):
        store.get_artifact(record().key)
    said = store.put_artifact(record().key, b"numbers")
    store.put(record(artifact=said))
    assert store.get_artifact(record().key).read_bytes() == b"numbers"
    store.artifact(record().key).write_bytes(b"other")
    with pytest.raises(StoreError, match="missing or damaged"):
        store.get_artifact(record().key)


def test_a_group_can_read_it(tmp_path):
    """A store on a cluster is shared; files for their owner alone would lock the others out."""
    before = os.umask(0o022)
    try:
        path = Store(tmp_path / "s").put(record())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_record_is_plain_json(tmp_path):
    """Anybody must be able to read the records without this program."""
    path = Store(tmp_path / "s").put(record(metrics={"x": 1.5}))
    raw = json.loads(path.read_text())
    assert raw["record"]["metrics"] == {"x": 1.5}
    assert raw["key"] == path.stem


def test_nan_is_refused(tmp_path):
    """NaN is no JSON and no result; it must be caught before it is stored."""
    store = Store(tmp_path / "s")
    with pytest.raises(ValueError, match="JSON compliant"):
        store.put(record(metrics={"x": float("nan")}))
    assert store.head(record().key) is None
