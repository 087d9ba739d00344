"""Scores, choice and attention in one launch, against their definitions.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R dims that rank, N sets, K width.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lacuna.kernels.tiling import power_of_2
from lacuna.kernels.topk_decode.cut import WholePlan
from lacuna.kernels.topk_decode.fused import shared_bytes
from lacuna.kernels.topk_decode.whole.fused import whole_decode

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)

RANKED = ("rank_q_BHR", "rank_k_BGSR", "lo_B", "hi_B", "reduce")


@pytest.mark.parametrize("wanted", [None, 0, 3])
@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_one_launch_does_what_three_do(case, reduce, wanted, device):
    """Broken: a block reads scores or rows that are not written yet, or chooses hidden ones."""
    inputs = ops.inputs_of("topk_decode", case, device) | {"reduce": reduce}
    for name in ("rank_q_BHR", "rank_k_BGSR"):  # exact ranks, many of them equal
        inputs[name] = (inputs[name] * 2).round().clamp(-3, 3)
    if wanted is not None:
        inputs["wanted_B"] = torch.full_like(inputs["wanted_B"], wanted)
    plan = WholePlan(power_of_2(max(512, case.rows)), 4, 128, 16, 3, 16, 3)
    with ops.poisoned_memory():
        out_BHD, index_BNK, count_BN = whole_decode(**inputs, plan=plan)
    s_BNS = ops.definitions.lowrank_score(*(inputs[name] for name in RANKED))
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, inputs["wanted_B"], inputs["width"])
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)
    dense = (inputs["q_BHD"], inputs["k_BGSD"], inputs["v_BGSD"])
    want_BHD = ops.definitions.gather_decode(*dense, expected_BNK, expected_BN, inputs["scale"])
    torch.testing.assert_close(out_BHD.double().cpu(), want_BHD, rtol=0, atol=2e-6)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_ties_go_on_from_part_to_part(share, device):
    """Broken: a part of a long set counts its rows or ties from its own beginning, or from the first hidden row."""
    case = ops.Case("parts", 2, 4, 2, 7001, head_dim=64, low_dims=16, kept=5000)
    inputs = ops.inputs_of("topk_decode", case, device, "bfloat16") | {"reduce": "max"}
    for name in ("rank_q_BHR", "rank_k_BGSR"):  # exact ranks, many of them equal
        inputs[name] = inputs[name].round().clamp(-1, 1)
    for name, bounds in (("lo_B", [7, 1203]), ("hi_B", [7001, 6990])):
        inputs[name] = torch.tensor(bounds, dtype=torch.int32, device=device)
    s_BNS = ops.definitions.lowrank_score(*(inputs[name] for name in RANKED))
    ranked = s_BNS[0, 0].sort(descending=True).values
    wanted = int((ranked >= ranked[int(share * case.rows)]).sum()) - 3  # all but the last three that tie
    inputs["wanted_B"] = torch.tensor([wanted, wanted - 1], dtype=torch.int32, device=device)
    plan = WholePlan(8192, 8, 255, 512, 4, 128, 6)  # of 32 groups of 128 rows, two parts
    with ops.poisoned_memory():
        out_BHD, index_BNK, count_BN = whole_decode(**inputs, plan=plan)
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, inputs["wanted_B"], inputs["width"])
    chosen = expected_BNK[0, 0, : expected_BN[0, 0]]
    tied = chosen[s_BNS[0, 0, chosen] == s_BNS[0, 0, chosen].min()]
    assert tied[0] < 4096 < tied[-1]
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)
    dense = (inputs["q_BHD"], inputs["k_BGSD"], inputs["v_BGSD"])
    want_BHD = ops.definitions.gather_decode(*dense, expected_BNK, expected_BN, inputs["scale"])
    torch.testing.assert_close(out_BHD.double().cpu(), want_BHD, rtol=0, atol=ops.TOLERANCE["bfloat16"])


@pytest.mark.parametrize("reduce", ["max", "none"])
def test_one_launch_is_taken_where_it_has_a_plan(reduce, device, monkeypatch):
    """Broken: the one launch is never taken, or for sets of query heads, whose rows it does not read."""
    from lacuna.kernels.topk_decode import fused

    case, taken = ops.SHAPES[1], []
    plan = WholePlan(power_of_2(max(512, case.rows)), 4, 128, 16, 3, 16, 3)
    monkeypatch.setattr(fused, "whole_plan", lambda *_: plan)
    monkeypatch.setattr(fused, "whole_decode", lambda *given: taken.append(given) or whole_decode(*given))
    inputs = ops.inputs_of("topk_decode", case, device) | {"reduce": reduce}
    got, want = ops.run("topk_decode", "fused", inputs), ops.run("topk_decode", "eager", inputs)
    assert len(taken) == (reduce != "none")
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"k_BGSD": torch.zeros(2, 2, 64, 8).transpose(2, 3)}])
def test_what_it_cannot_read_is_refused(wrong, device):
    """Broken: nothing is asked for, or rows are read as if they were contiguous, and nothing is said."""
    inputs = ops.inputs_of("topk_decode", ops.SHAPES[0], device) | wrong
    with pytest.raises(ValueError, match="expected"):
        whole_decode(**inputs, plan=WholePlan(512, 4, 128, 16, 3, 16, 3))


@pytest.mark.parametrize("plan", [None, WholePlan(512, 4, 128, 16, 3, 16, 3)], ids=["three", "one"])
def test_a_reduction_that_is_none_is_refused(plan, device, monkeypatch):
    """Broken: one launch adds up what it was asked to average."""
    monkeypatch.setattr("lacuna.kernels.topk_decode.fused.whole_plan", lambda *_: plan)
    inputs = ops.inputs_of("topk_decode", ops.SHAPES[1], device) | {"reduce": "mean"}
    with pytest.raises(ValueError, match="reduce among 'max', 'sum', 'none', got 'mean'"):
        ops.run("topk_decode", "fused", inputs)


def test_one_launch_is_planned_for_the_widest_items(device, monkeypatch):
    """Broken: ranks in float32 beside keys in bfloat16 get tiles of twice the bytes that were counted."""
    seen = []
    monkeypatch.setattr("lacuna.kernels.topk_decode.fused.whole_plan", lambda *given: seen.append(given[4]))
    inputs = ops.inputs_of("topk_decode", ops.SHAPES[1], device)
    for name in ("q_BHD", "k_BGSD", "v_BGSD"):
        inputs[name] = inputs[name].bfloat16()
    ops.run("topk_decode", "fused", inputs)
    assert seen == [4]


@pytest.mark.parametrize(("told", "expected"), [({"shared_memory_per_block_optin": 166912}, 166912), ({}, 49152)])
def test_shared_memory_is_what_a_block_may_ask_for(told, expected, monkeypatch):
    """Broken: one launch is planned for more shared memory than the GPU at hand gives a block."""
    properties = SimpleNamespace(shared_memory_per_block=49152, **told)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    assert shared_bytes(torch.device("cuda")) == expected
