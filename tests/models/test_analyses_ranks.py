"""Analyses of a model whose heads are on several ranks."""

import json
import sys
from pathlib import Path

import analyses_worker
import pytest
from test_thresholds import corpus  # noqa: F401

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mpirun import mpirun  # noqa: E402

pytestmark = pytest.mark.mpi


def near(value):
    """Nested lists and mappings of numbers, each within float32's rounding."""
    if isinstance(value, dict):
        return {name: near(one) for name, one in value.items()}
    return [near(one) for one in value] if isinstance(value, list) else pytest.approx(value, rel=5e-3, abs=2e-6)


def test_two_ranks_see_what_one_sees(corpus, tmp_path):  # noqa: F811
    """Heads of other ranks would be missing, in another order, or the zero head that pads three groups be counted."""
    analyses_worker.main(6, 3, str(corpus), tmp_path / "1.json")
    mpirun(2, HERE / "analyses_worker.py", 6, 3, corpus, tmp_path / "2.json")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert len(one) == 9
    heads = {len(s["by_head"]) for name in one if "OutputError" in name for s in one[name][1]}
    assert heads == {6}
    for name, found in one.items():
        assert two[name] == near(found), name
