"""The walk of an eviction against the rule written key by key, and its twins against each other.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim, N sets of rows.
"""

from dataclasses import replace

import pytest
import torch

from lacuna.kernels.evict_walk import compare_walks, fused
from lacuna.kernels.evict_walk.eager import Walked
from lacuna.kernels.evict_walk.few import fused as few
from lacuna.kernels.many_rows import RowsCase
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import poisoned_memory, verify

OP = load_op("evict_walk")
CASES = [case for case in OP.cases if case.purpose == "test"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the kernel drops a key that did not bear the lowest mark, or loses a mark."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


# Sums beside what leaves; after it: one head at once, two of three and the last alone, most of them.
@pytest.mark.parametrize(("pair", "weights"), [(2, 32), (0, 1), (0, 32), (0, 64)])
@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
def test_walks_in_pieces_are_the_same(case, pair, weights, device, monkeypatch):
    """Broken: where scores of all rows are too many, the walk forgets what it holds; or heads beyond the first chunk."""
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.HEADS_OF_PAIR", pair)
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.LEAST_ROWS", 1)
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.SCORES_AT_ONCE", 7 * 64 * case.batch * case.q_heads)
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.SCORES_OF_CHUNK", weights)
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused._walk_rows", fails)  # which would hide a wrong walk
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


# Too few are named for scores of which a few have all the weight, so that some rows weigh all that is held; or enough.
@pytest.mark.parametrize(("named", "sharp"), [(4, 9.0), (16, 1.0)])
@pytest.mark.parametrize(
    "case",
    [OP.case("last_row"), replace(OP.case("last_row"), name="padded", q_heads=6, layout="padded")],
    ids=lambda case: case.name,
)
def test_rows_name_what_may_leave_after_them(case, named, sharp, device, monkeypatch):
    """Broken: a key outside of those named bore the lowest mark, or what has left still shares in the weights."""
    monkeypatch.setattr(fused, "LEAST_HEADS", 1)
    monkeypatch.setattr(fused, "ROWS_NAMING", 8)
    monkeypatch.setattr(few, "NAMED", named)
    monkeypatch.setattr(fused, "_walk_ahead", fails)
    inputs = OP.make(case, device, 3)
    inputs["scale"] *= sharp
    with poisoned_memory():
        found = OP.fused(**inputs)
    compared = compare_walks(inputs, found, found)
    assert not compared.reason
    assert compared.error < 1e-5


@pytest.mark.parametrize("case", CASES[2:], ids=lambda case: case.name)
def test_a_cache_of_many_columns_is_walked_in_pieces_too(case, device, monkeypatch):
    """Broken: where a cache is too large for weights made before, the walk forgets what it holds, or some heads."""
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.MOST_COLUMNS", 1)
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.SCORES_AT_ONCE", 7 * case.batch * case.q_heads * case.rows)
    monkeypatch.setattr("lacuna.kernels.evict_walk.fused.SCORES_OF_ROW", 32)  # one head at once
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
def test_a_walk_asks_nothing_of_the_device(case, device, monkeypatch):
    """Broken: in each layer of a long text the host waits for the GPU, to learn what it knows."""
    inputs, asked = OP.make(case, device, 2), []
    for name in ("__bool__", "__int__", "item", "tolist"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, own=own, name=name: asked.append(name) or own(x))
    OP.fused(**inputs)
    assert not asked


def fails(*_):
    """Stands for a walk that is not to be taken."""
    raise AssertionError("walked again")


def inputs_of(**change):
    case = RowsCase("small", 2, 4, 2, 23, head_dim=8, kept=6, queries=15, dtype="float64")
    return OP.make(replace(case, **change), torch.device("cpu"), 2)


def walked(inputs, b, n):
    """{key: row until which it is held}, {key: mark}, of one set, written key by key."""
    q, k, number = inputs["q_BHTD"][b], inputs["k_BGSD"][b], inputs["number_BNS"][b, n].tolist()
    sets, before = inputs["number_BNS"].shape[1], k.shape[1] - q.shape[1]
    heads = [h for h in range(4) if h * sets // 4 == n]
    mark = {c: float(inputs["mark_BNS"][b, n, c]) for c in range(before) if number[c] >= 0}
    until = {}
    for t in range(q.shape[1]):
        own = before + t
        if number[own] < 0:
            continue
        if len(mark) + 1 > int(inputs["budget_BT"][b, t]):
            old = [c for c in mark if number[c] <= number[own] - int(inputs["recent_BT"][b, t])]
            lowest = min(old, key=lambda c: (mark[c], c))
            until[lowest] = t
            del mark[lowest]
        mark[own] = float(inputs["mark_BNS"][b, n, own])
        weight = dict.fromkeys(mark, 0.0)
        for h in heads:
            score = torch.stack([k[h // 2, c] @ q[h, t] for c in mark]) * inputs["scale"]
            for c, share in zip(mark, score.softmax(0).tolist(), strict=True):
                weight[c] += share
        mark = {c: inputs["carry"] * mark[c] + inputs["share"] * weight[c] for c in mark}
    return {c: t for c, t in until.items() if t} | dict.fromkeys(mark, q.shape[1]), mark


@pytest.mark.parametrize("layout", ["plain", "padded"])
@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_the_lowest_mark_leaves(reduce, layout):
    """Broken: H2O or TOVA drops another key than the rule says, or a recent one, or before the cache is full."""
    inputs = inputs_of(reduce=reduce, layout=layout)
    found = OP.eager(**inputs)
    assert len(set(found.until_BNS.flatten().tolist())) > 5
    for b, n in torch.cartesian_prod(*(torch.arange(s) for s in found.until_BNS.shape[:2])).tolist():
        until, mark = walked(inputs, b, n)
        assert {c: row for c, row in enumerate(found.until_BNS[b, n].tolist()) if row} == until
        assert {c: m for c, m in enumerate(found.mark_BNS[b, n].tolist()) if m} == pytest.approx(mark)


def test_of_equal_marks_the_oldest_leaves(device):
    """Broken: among rows that nothing attends, which one is dropped depends on where it lies in the cache."""
    q, k = torch.zeros(1, 1, 30, 16, device=device), torch.ones(1, 1, 40, 16, device=device)
    number = torch.arange(40, dtype=torch.int32, device=device).view(1, 1, -1)
    budget = torch.full((1, 30), 10, dtype=torch.int32, device=device)
    arguments = (q, k, torch.zeros(1, 1, 40, device=device), number, budget, torch.ones_like(budget), 1.0, 0.0, 1.0, 10)
    with poisoned_memory():
        found = OP.fused(*arguments)
    assert found.until_BNS[0, 0].tolist() == [*range(30), *[30] * 10]
    assert torch.equal(found.until_BNS, OP.eager(*arguments).until_BNS)


@pytest.mark.parametrize("least", [fused.LEAST, 3e38])  # rows weighed again: those with nothing left, or all of them
@pytest.mark.parametrize("far", [2.0, 15.0, 40.0])
# Over all held, with sums beside what leaves and after it; among few.
@pytest.mark.parametrize(("reduce", "heads", "pair"), [("max", 32, 2), ("max", 32, 0), ("sum", 1, 0)])
def test_a_key_that_left_may_have_had_all_the_weight(reduce, heads, pair, far, least, device, monkeypatch):
    """Broken: where a key that left stands far above all others, the rest weigh nothing, and any of them is dropped."""
    case = RowsCase("far", 1, 2, 1, 40, head_dim=16, kept=6, queries=30, dtype="float32", reduce=reduce)
    inputs = OP.make(case, device, 3)
    inputs["mark_BNS"][0, 0, :10] += 9.0
    inputs["mark_BNS"][0, 0, 3] = 0.0  # leaves first, and is what all later queries look for
    inputs["q_BHTD"][..., 0], inputs["k_BGSD"][..., 0], inputs["k_BGSD"][0, 0, 3, 0] = far, 0.0, far
    monkeypatch.setattr(fused, "_walk_rows", fails)
    monkeypatch.setattr(fused, "LEAST", least)
    monkeypatch.setattr(fused, "LEAST_HEADS", heads)
    monkeypatch.setattr(fused, "HEADS_OF_PAIR", pair)
    inputs["number_BNS"][0, 0, :10] = torch.arange(10, dtype=torch.int32)
    inputs["budget_BT"][:] = inputs["most"] = 10
    with poisoned_memory():
        found = OP.fused(**inputs)
    assert int(found.until_BNS[0, 0, 3]) == 0
    compared = compare_walks(inputs, found, found)
    assert not compared.reason
    assert compared.error < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter knows no layouts")
@pytest.mark.parametrize("pair", [2, 0])
@pytest.mark.parametrize(("reduce", "heads"), [("max", 32), ("sum", 32), ("sum", 1)])
@pytest.mark.parametrize("slower", [False, True])
def test_a_cache_over_several_warps_is_walked_as_a_small_one(slower, reduce, heads, pair, device, monkeypatch):
    """Broken: what the compiler holds in several layouts differs between them, and a key leaves in one of them only."""
    case = RowsCase("large", 1, 4, 2, 1500, head_dim=64, kept=1000, queries=460, visible="full", reduce=reduce)
    monkeypatch.setattr(fused, "LEAST", 3e38 if slower else fused.LEAST)
    monkeypatch.setattr(fused, "LEAST_HEADS", heads)
    monkeypatch.setattr(fused, "HEADS_OF_PAIR", pair)
    inputs = OP.make(case, device, 3)
    found = OP.fused(**inputs)
    compared = compare_walks(inputs, found, found)
    assert not compared.reason
    assert compared.error < 1e-5


@pytest.mark.parametrize("left", [0.0, 3e38])  # of a sum: never summed anew; always
def test_a_sum_is_the_same_whether_what_leaves_is_taken_off_or_left_out(left, device, monkeypatch):
    """Broken: where most of a row's weight leaves with a key, what is left is summed over other keys than are held."""
    monkeypatch.setattr(fused, "LEFT", left)
    case = OP.case("gqa2_padded")
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


@pytest.mark.parametrize("break_", ["another", "none", "mark"])
def test_a_walk_by_another_rule_is_found(break_):
    """Broken: a kernel that drops any key, or none, passes its verification."""
    inputs = inputs_of()
    right = OP.eager(**inputs)
    until, mark = right.until_BNS.clone(), right.mark_BNS.clone()
    if break_ == "mark":
        mark[0, 0, -1] += 0.5
    else:
        first, later = (int((until[0, 0] == row).nonzero()[0, 0]) for row in (7, 12))
        until[0, 0, first], until[0, 0, later] = (12, 7) if break_ == "another" else (15, 12)
    assert compare_walks(inputs, right, right).error < 1e-12
    wrong = compare_walks(inputs, Walked(until, mark), right)
    assert wrong.reason or wrong.error > 1e-3
