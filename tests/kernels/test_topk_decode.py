"""Attention to the rows that rank best, and rows that several blocks choose from, against their definitions.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims that rank, N sets of rows, K kept.
"""

import importlib.util
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lacuna.kernels.tiling import Plan
from lacuna.kernels.topk_decode.cut import long_gather_plan, searched_jointly
from lacuna.kernels.topk_decode.fused import HOPPER_SHARED_BYTES

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)


def whole_numbers(case, device, reduce):
    """Inputs whose ranks are exact, and many of them equal."""
    inputs = ops.inputs_of("topk_decode", case, device) | {"reduce": reduce}
    for name in ("rank_q_BHR", "rank_k_BGSR"):
        inputs[name] = (inputs[name] * 2).round().clamp(-3, 3)
    return inputs


def assert_right(inputs, output, atol=2e-6):
    """The rows are those of the definition, and the attention is to them."""
    ranked = ("rank_q_BHR", "rank_k_BGSR", "lo_B", "hi_B", "reduce")
    s_BNS = ops.definitions.lowrank_score(*(inputs[name] for name in ranked))
    index_BNK, count_BN = ops.definitions.select_topk(s_BNS, inputs["wanted_B"], inputs["width"])
    assert torch.equal(output[2].long().cpu(), count_BN)
    assert torch.equal(output[1].long().cpu(), index_BNK)
    dense = (inputs["q_BHD"], inputs["k_BGSD"], inputs["v_BGSD"])
    want_BHD = ops.definitions.gather_decode(*dense, index_BNK, count_BN, inputs["scale"])
    torch.testing.assert_close(output[0].double().cpu(), want_BHD, rtol=0, atol=atol)


@ops.both
@pytest.mark.parametrize("reduce", ["max", "sum", "none"])
@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_the_best_rows_are_attended_and_ties_go_to_the_lowest(case, reduce, twin, device):
    """Broken: a row is missed or doubled, a hidden one is chosen, or ties go to other rows than in the other twin."""
    inputs = whole_numbers(case, device, reduce)
    assert_right(inputs, ops.run("topk_decode", twin, inputs))


class Stream:
    """Of a machine without any: everything is done in order."""

    def wait_stream(self, _other):
        """Nothing to wait for."""


@pytest.mark.parametrize("reduce", ["max", "none"])
@pytest.mark.parametrize("case", ops.SHAPES[1:3], ids=lambda case: case.name)
def test_halves_are_the_whole(case, reduce, device, monkeypatch):
    """Broken: a half of the texts, or of the heads of the only text, gets rows or results of the other."""
    from lacuna.kernels.topk_decode import fused

    if device.type == "cpu":
        monkeypatch.setattr(fused, "side_stream", lambda _device: Stream())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream())
        monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
    inputs = whole_numbers(case, device, reduce)
    assert_right(inputs, ops.run("topk_decode", "fused", inputs, halves=2))


@ops.both
def test_a_width_of_nothing_is_refused(twin, device):
    """Broken: nothing is asked for, and nothing is said."""
    with pytest.raises(ValueError, match="width"):
        ops.run("topk_decode", twin, whole_numbers(ops.SHAPES[0], device, "max") | {"width": 0})


@pytest.mark.parametrize(
    ("kind", "k"), [("normal", 300), ("normal", 0), ("ties", 300), ("constant", 300), ("wide", 300), ("hidden", 5000)]
)
def test_rows_of_several_blocks_are_selected_alike(k, kind, device):
    """Broken: blocks that hold a row together choose other rows than the definition."""
    from lacuna.kernels.select_topk.fused import empty_choice
    from lacuna.kernels.select_topk.joint.fused import select_joint

    s_BNS = ops.scores(kind, 1299, device)[:, :2].contiguous()
    k_B = torch.tensor([k, k // 2], dtype=torch.int32, device=device)
    with ops.poisoned_memory():
        index_BNK, count_BN = empty_choice(2, 2, 1500, s_BNS.device)
        select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512)
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, 1500)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


def test_more_rows_than_blocks_can_hold_are_refused(device):
    """Broken: blocks that wait for each other are more than a GPU holds at once, and wait for ever."""
    s_BNS = torch.zeros(1, 1, 1, device=device).expand(1, 1, 2**21 + 1)
    k_B = torch.tensor([4], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="2097152 rows"):
        ops.run("select_topk", "fused", {"s_BNS": s_BNS, "k_B": k_B, "width": 4})


def test_a_row_of_a_million_is_selected_exactly(device):
    """Broken: counts of a long row overflow, or its last rows are cut off."""
    rows = 2**20 if device.type == "cuda" else 2**17
    s_BNS = torch.randn(1, 2, rows, generator=torch.Generator().manual_seed(3)).to(device)
    s_BNS[0, 1, 5::7] = math.inf
    k_B = torch.tensor([rows // 4], dtype=torch.int32, device=device)
    index_BNK, count_BN = ops.run("select_topk", "fused", {"s_BNS": s_BNS, "k_B": k_B, "width": rows // 4})
    expected_BNK, expected_BN = ops.run("select_topk", "eager", {"s_BNS": s_BNS, "k_B": k_B, "width": rows // 4})
    assert torch.equal(count_BN, expected_BN)
    assert torch.equal(index_BNK, expected_BNK)


@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_scores_are_told_as_they_are(case, reduce, device):
    """Broken: a choice begins with the count of other scores, and rows are lost; or words are not cleared."""
    from lacuna.kernels.lowrank_score.fused import scores_told

    inputs = whole_numbers(case, device, reduce)
    ranked = [inputs[name] for name in ("rank_q_BHR", "rank_k_BGSR", "lo_B", "hi_B")]
    clear = torch.full((13,), 5, dtype=torch.int64, device=device)
    with ops.poisoned_memory():
        s_BNS, told_BNX4 = scores_told(*ranked, reduce, clear=clear)
    seen = s_BNS > -math.inf
    known = s_BNS.double().masked_fill(~seen, 0.0)
    powers = torch.stack([seen.double(), known, known**2, known**3], -1).sum(2)
    torch.testing.assert_close(told_BNX4.double().sum(2), powers)
    assert not clear.any()


@pytest.mark.parametrize(
    ("kind", "k"), [("normal", 300), ("normal", 0), ("ties", 300), ("constant", 300), ("wide", 300), ("hidden", 5000)]
)
def test_a_choice_that_is_told_of_its_scores_is_the_same(kind, k, device):
    """Broken: a wrong or lacking moment loses rows, instead of steps of the search."""
    from lacuna.kernels.select_topk.fused import empty_choice
    from lacuna.kernels.select_topk.joint.fused import select_joint

    s_BNS = ops.scores(kind, 1299, device)[:, :2].contiguous()
    k_B = torch.tensor([k, k // 2], dtype=torch.int32, device=device)
    seen = s_BNS > -math.inf
    known = s_BNS.masked_fill(~seen, 0.0)
    told_BNX4 = torch.stack([seen.sum(-1).float(), *(known.pow(n).sum(-1) for n in (1, 2, 3))], -1)[:, :, None]
    with ops.poisoned_memory():
        index_BNK, count_BN = empty_choice(2, 2, 1500, s_BNS.device)
        board = torch.zeros(2048, dtype=torch.int64, device=device)
        select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512, told_BNX4=told_BNX4, board=board)
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, 1500)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


@pytest.mark.parametrize("reduce", ["max", "sum", "none"])
def test_long_rows_are_chosen_from_by_what_scores_tell(reduce, device, monkeypatch):
    """Broken: what several blocks begin with is of other sets, or their words are not cleared."""
    monkeypatch.setattr("lacuna.kernels.topk_decode.cut.MOST_ROWS", 16)
    monkeypatch.setattr("lacuna.kernels.select_topk.fused.MOST_ROWS", 16)
    inputs = whole_numbers(ops.SHAPES[1], device, reduce)
    with ops.poisoned_memory():
        output = ops.run("topk_decode", "fused", inputs, halves=1)
    assert_right(inputs, output)


def test_few_sets_of_long_rows_are_planned_for_several_blocks():
    """Broken: more blocks wait for each other than the GPU holds at once, or few sets leave its SMs idle."""
    for sets, rows, sms, jointly in (
        (8, 32832, 132, True),
        (16, 32832, 132, True),
        (32, 32832, 132, False),  # 288 blocks, of which 264 find room
        (33, 32768, 132, True),
        (8, 20480, 132, False),
        (8, 20481, 132, True),
        (8, 32832, 35, False),
        (128, 40960, 132, False),
        (128, 40961, 132, True),
    ):
        assert searched_jointly(sets, rows, "max", sms) == searched_jointly(sets, rows, "sum", sms) == jointly
        assert searched_jointly(sets, rows, "none", sms) == (rows > 40960)


@pytest.mark.parametrize("halves", [0, 1, 2])
@pytest.mark.parametrize("reduce", ["max", "sum", "none"])
def test_few_sets_of_long_rows_are_chosen_from_by_several_blocks(reduce, halves, device, monkeypatch):
    """Broken: what is told is of other sets, one block is left to choose, or blocks search that are told nothing."""
    from lacuna.kernels.select_topk import fused as select
    from lacuna.kernels.topk_decode import fused

    if halves == 2 and device.type == "cpu":
        pytest.skip("halves need streams, and go one after the other in test_halves_are_the_whole")
    monkeypatch.setattr(fused, "multiprocessors", lambda _: 132)
    told, joint = [], select.select_joint
    monkeypatch.setattr(select, "select_joint", lambda *given, **more: told.append(more) or joint(*given, **more))
    inputs = whole_numbers(ops.Case("few", 1, 4, 2, 20485, low_dims=16, kept=300), device, reduce)
    with ops.poisoned_memory():
        output = ops.run("topk_decode", "fused", inputs, halves=halves)
    assert_right(inputs, output)
    assert len(told) == (0 if reduce == "none" else max(1, halves))
    assert all(more["told_BNX4"] is not None for more in told)


def test_attention_behind_long_rows_has_one_block_an_sm():
    """Broken: large tiles are asked for where shared memory, sets or chosen rows are too few for them."""
    assert long_gather_plan(8, 4, 32768, 128, 2, 132, HOPPER_SHARED_BYTES) == Plan(128, 16, 4, 6)
    assert long_gather_plan(8, 4, 32768, 64, 2, 132, HOPPER_SHARED_BYTES).block_rows == 256
    refused = {
        "float32": (8, 4, 32768, 128, 4, 132),
        "many sets": (128, 4, 32768, 128, 2, 132),
        "few rows": (8, 4, 4096, 128, 2, 132),
        "wide queries": (8, 128, 65536, 256, 2, 132),  # compiled, it takes 262656 bytes
    }
    assert not any(long_gather_plan(*given, HOPPER_SHARED_BYTES) for given in refused.values())
    assert long_gather_plan(50, 4, 32768, 128, 2, 132, HOPPER_SHARED_BYTES) is None  # a quarter of the SMs would idle
    assert long_gather_plan(8, 4, 32768, 128, 2, 108, 163 * 1024) is None


def test_attention_in_large_tiles_is_to_the_rows_chosen(device, monkeypatch):
    """Broken: blocks that share a long set attend to rows of another, or leave some out."""
    monkeypatch.setattr("lacuna.kernels.topk_decode.cut.MOST_ROWS", 16)
    monkeypatch.setattr("lacuna.kernels.select_topk.fused.MOST_ROWS", 16)
    planned = []
    monkeypatch.setattr(
        "lacuna.kernels.topk_decode.fused.multiprocessors", lambda _: 4
    )  # as many as blocks of both sets, on a GPU too
    plan_of = long_gather_plan
    monkeypatch.setattr(
        "lacuna.kernels.topk_decode.fused.long_gather_plan",
        lambda *given: planned.append(plan_of(*given)) or planned[-1],
    )
    case = ops.Case("long", 1, 8, 2, 3001, head_dim=64, low_dims=16, kept=2100, dtype="float16")
    inputs = ops.inputs_of("topk_decode", case, device, "float16") | {"reduce": "max"}
    for name in ("rank_q_BHR", "rank_k_BGSR"):
        inputs[name] = (inputs[name] * 2).round().clamp(-3, 3)
    output = ops.run("topk_decode", "fused", inputs, halves=1)
    assert planned == [Plan(256, 2, 4, 6)]
    assert_right(inputs, output, atol=1e-4)  # float16 weights of two thousand rows
