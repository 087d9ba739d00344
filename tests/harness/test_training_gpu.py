"""What training does on a GPU alone, as far as a CPU can try it: what the fused kernel is given, runs cut to a time."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils import deterministic

sys.path[:0] = [str(Path(__file__).parent)]

from training_cells import assert_close, train  # noqa: E402

from lacuna.harness.training import kinds  # noqa: E402
from lacuna.harness.training.repeatable import repeatable  # noqa: E402
from lacuna.results.plugins import ROOT  # noqa: E402


def test_the_fused_kernel_gets_one_dtype(monkeypatch):
    """Autocast knows torch's kernels alone: float32 queries beside bfloat16 values would be a wrong or a slow kernel."""
    given = []

    def kernel(q, k, v, block, scale):
        given.append(({t.dtype for t in (q, k, v)}, block, scale))
        return v

    monkeypatch.setattr(kinds, "landmark_sdpa", kernel)
    rows = SimpleNamespace(is_cuda=True, to=lambda dtype: torch.zeros(1, 2, 18, 4, dtype=dtype))
    value = torch.zeros(1, 2, 18, 4, dtype=torch.bfloat16)
    out, _ = kinds.WithLandmarks(block=8).attend(None, rows, rows, value, None, scaling=0.5)
    assert given == [({torch.bfloat16}, 9, 0.5)]
    assert out.shape == (1, 18, 2, 4)


@pytest.fixture
def budget():
    """The script beside train.sh."""
    spec = importlib.util.spec_from_file_location("budget", ROOT / "tests" / "gpu" / "budget.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_is_cut_to_the_time_it_has(budget):
    """A training that ends after the machine was given back has made no model."""
    task = {"lengths": [512, 4096], "shares": [0.25, 0.75], "step_tokens": 1000, "tokens": 1}
    record = {"tok_s_512": "4000", "tok_s_4096": "1000"}
    made = budget.fit({"task": {"train": task}}, 1000.0, [record])["task"]["train"]
    seconds = made["tokens"] * (0.25 / 4000 + 0.75 / 1000)
    assert 938 < seconds <= 940
    assert made["tokens"] % 1000 == 0
    with pytest.raises(SystemExit, match="needs more time"):
        budget.fit({"task": {"train": task}}, 1.0, [record])


def test_the_probe_runs_what_the_training_compiles(budget):
    """Other rows or parts than the training's would be other kernels: compiled again, timed for nothing."""
    task = {"lengths": [512, 4096], "shares": [0.25, 0.75], "step_tokens": 1000, "part_tokens": 500, "tokens": 1}
    made = budget.probe({"name": "t", "task": {"train": dict(task)}})["task"]["train"]
    assert made["tokens"] == 2 * budget.PROBED * 1000
    assert {name: made[name] for name in ("lengths", "step_tokens", "part_tokens")} == {
        name: task[name] for name in ("lengths", "step_tokens", "part_tokens")
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("attention", ["standard", "landmark"])
def test_a_graph_trains_what_calls_train(tmp_path, attention):
    """Gradients that a replay loses, or adds to those of the step before, would train another model."""
    more = {"attention": attention, "block": 16, "lengths": [64, 32], "launch": "call"}
    called = train(tmp_path, "call", name="call", device="cuda", **more)
    graphed = train(tmp_path, "graph", name="graph", device="cuda", **{**more, "launch": "graph"})
    assert called[0].status == "ok", called[0].trace
    assert graphed[0].status == "ok", graphed[0].trace
    assert_close(called, graphed, atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only there do kernels add up in whatever order blocks end")
@pytest.mark.parametrize("more", [
    {"attention": "standard"},
    {"attention": "landmark", "block": 31},
    {"attention": "landmark", "block": 31, "kernel": "eager", "group_dropout": 0.1},
    {"attention": "landmark", "block": 31, "places": "random", "control": 0.5, "jump": 3},
    {"attention": "recurrent", "window": 62},
    {"attention": "recurrent", "window": 62, "launch": "call"},
])  # fmt: skip
def test_the_same_training_gives_the_same_bits(tmp_path, more):
    """A run that was killed and taken up again would be near what it would have been, and nobody could tell by what."""
    where = {"device": "cuda", "dtype": "bfloat16"}
    same = {"lengths": [62, 248], "tokens": 31744, "step_tokens": 7936, "part_tokens": 7936, **more}
    runs = [train(tmp_path, name, name=name, **where, **same) for name in ("one", "two")]
    assert runs[0][0].status == "ok", runs[0][0].trace
    assert_close(*runs, atol=0, rtol=0)


@pytest.mark.parametrize(("sums", "expected"), [("ordered", {True}), ("free", {False})])
def test_kernels_are_chosen_as_the_cell_says(tmp_path, monkeypatch, sums, expected):
    """A run that was to be repeated could not be, or one that was to be fast would be slow, and nothing would say so."""
    seen, own = set(), kinds.Standard.sums

    def spy(self, loss, fed):
        # scoring, after the training, passes here too
        seen.update({torch.are_deterministic_algorithms_enabled()} if torch.is_grad_enabled() else ())
        return own(self, loss, fed)

    monkeypatch.setattr(kinds.Standard, "sums", spy)
    record, _ = train(tmp_path, "s", sums=sums, tokens=1024)
    assert record.status == "ok", record.trace
    assert seen == expected


def test_other_work_in_the_process_keeps_its_kernels():
    """Ops that are timed or evaluated after a training would be slower ones than where nothing was trained before."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    with repeatable(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not deterministic.fill_uninitialized_memory
    assert (torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory) == before


def test_sums_that_stay_free_are_refused(monkeypatch):
    """A record would say that its sums were in order where torch could not keep to it."""

    class Refused:
        def __matmul__(self, other):
            raise RuntimeError("Deterministic behavior was enabled, but set CUBLAS_WORKSPACE_CONFIG=:4096:8")

    monkeypatch.setattr(torch, "ones", lambda *_, **__: Refused())
    before = torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ValueError, match="sums: free"), repeatable(torch.device("cpu")):
        pass
    assert torch.are_deterministic_algorithms_enabled() == before
