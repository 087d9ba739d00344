"""`lacuna verify` and `lacuna bench` as they are typed."""

from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_a_gpu_that_is_not_there(outcome, command):
    """Kernels would end in a traceback of torch's on a machine without a GPU."""
    assert outcome(command, "gate", "--device", "cuda") == (2, "", "no CUDA GPU is visible: use --device cpu\n")


def test_a_bench_that_times_nothing_leaves_the_file_of_an_earlier_one(tmp_path, monkeypatch, outcome):
    """A wrong word would cost the times of an hour."""
    monkeypatch.chdir(tmp_path)
    Path("times.csv").write_text("measured\n", encoding="utf-8")
    code, _, said = outcome("bench", "landmark_attention", "--device", "cpu", "--rows", "64", "-o", "times.csv")
    assert (code, "expected operations of decoding" in said) == (2, True)
    assert Path("times.csv").read_text(encoding="utf-8") == "measured\n"


@pytest.mark.parametrize(("passed", "code"), [([True, True], 0), ([True, False], 1)])
def test_verify_fails_when_a_kernel_does(monkeypatch, outcome, passed, code):
    """A wrong kernel would pass."""
    rows = [{"op": "x", "passed": one, "reason": ""} for one in passed]
    monkeypatch.setattr("lacuna.jobs.operations.verify_all", lambda names, device: iter(rows))
    assert outcome("verify", "--device", "cpu")[:2] == (code, "".join(f"op=x  passed={p}\n" for p in passed))
