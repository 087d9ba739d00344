"""The store under kill -9: at most the record that was being written is lost, and none is ever half there."""

import random
import subprocess
import sys
import time

from lacuna.results.cell import Cell, Spec
from lacuna.results.record import Record
from lacuna.results.store import Store

WRITER = """
import itertools, sys
from lacuna.results.cell import Cell, Spec
from lacuna.results.record import Record
from lacuna.results.store import Store

store, task = Store(sys.argv[1]), Spec("prose")
for i in itertools.count():
    cell = Cell(Spec("pocket"), Spec("loki", args={"k": i % 40}), task)
    samples = [{"window": w, "loss": i + w / 7} for w in range(200)]
    artifact = store.put_artifact(cell.key, bytes([i % 256]) * 50_000)
    store.put(Record(cell, "ok", samples=samples, artifact=artifact))
    print(i, flush=True)
"""
CELLS = [Cell(Spec("pocket"), Spec("loki", args={"k": i}), Spec("prose")) for i in range(40)]


def kill_a_writer(store, after_s):
    """Start a writer, wait until it writes, kill it; returns how many records it said to have written."""
    command = [sys.executable, "-c", WRITER, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        time.sleep(after_s)
        writer.kill()
        return 1 + len(writer.stdout.read().splitlines())


def test_no_record_is_ever_half_written(tmp_path):
    """A node that dies while a record is written would leave a file that stops `status` and `collect`."""
    store, dice = Store(tmp_path / "store"), random.Random(9)
    for _ in range(40):
        written = kill_a_writer(store, dice.uniform(0, 0.05))
        records = list(Store(store.root).records())  # raises on a damaged file
        assert len(records) >= min(written, len(CELLS))
        assert all(len(r.samples) == 200 for r in records)


def test_a_kill_leaves_no_lock_behind(tmp_path):
    """After a crash, the next job could not write, or `status` would count the remains as records."""
    store = Store(tmp_path / "store")
    kill_a_writer(store, 0.02)
    (store.root / "records" / CELLS[0].key[:2] / ".tmp-remains").write_bytes(b'{"key": "ha')
    before = len(list(store.records()))
    store.put(Record(CELLS[0], "ok", metrics={"after": 1.0}))
    assert store.get(CELLS[0].key).metrics == {"after": 1.0}
    assert len(list(store.records())) == before
