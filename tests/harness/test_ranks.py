"""Several ranks: one that fails alone, and what ranks agree on."""

import sys
from pathlib import Path

import pytest

from lacuna.results.store import Store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mpirun import mpirun  # noqa: E402

pytestmark = pytest.mark.mpi


def test_a_rank_that_fails_alone_does_not_take_the_group_with_it(tmp_path):
    """Its peers wait in a collective that it never enters; they must give up, say so, and go on with the next cell."""
    sweep = tmp_path / "s.yaml"
    sweep.write_text(
        "name: s\nmodel: pocket\nranks: 2\nmethod: [full, {topk: {rows: 8}}]\n"
        "task: {perplexity: {window: 64, windows: 1}}\n"
    )
    mpirun(2, HERE / "lost_rank_worker.py", sweep, tmp_path / "store")
    records = {r.cell.method.name: r for r in Store(tmp_path / "store").records()}
    assert {name: r.status for name, r in records.items()} == {"full": "error", "topk": "ok"}
    assert "alone" in records["full"].reason
