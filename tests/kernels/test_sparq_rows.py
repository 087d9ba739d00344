"""SparQ's choice for many rows against the rule written row by row, and its twins against each other.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

from dataclasses import replace

import pytest
import torch

from lacuna.kernels.many_rows import RowsCase
from lacuna.kernels.op import load_op
from lacuna.kernels.sparq_rows import compare_choices
from lacuna.kernels.sparq_rows.eager import Rows
from lacuna.kernels.verify import poisoned_memory, verify

OP = load_op("sparq_rows")
CASES = [case for case in OP.cases if case.purpose == "test"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the kernel chooses keys of lower rank, or weighs them wrongly."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


def test_rows_in_pieces_are_the_same(device, monkeypatch):
    """Broken: where all scores are too many, rows of later pieces are chosen by those of others."""
    monkeypatch.setattr("lacuna.kernels.sparq_rows.fused.RANKS_AT_ONCE", 4 * 2 * 2 * 300)
    verdict = verify(OP, CASES[2], device)
    assert verdict.passed, verdict


def inputs_of(**change):
    case = RowsCase("small", 2, 4, 2, 43, head_dim=8, kept=12, queries=35, dtype="float64", layout="padded")
    return OP.make(replace(case, **change), torch.device("cpu"), 2)


def test_the_largest_summed_weights_are_chosen():
    """Broken: SparQ ranks by one head, or by scores, or forgets its local rows or padding."""
    inputs = inputs_of()
    found = OP.eager(**inputs)
    q, k, first = inputs["q_BHTD"], inputs["k_BGSD"], inputs["first_B"]
    for b, g, t in torch.cartesian_prod(*(torch.arange(n) for n in found.bits_BGTW.shape[:3])).tolist():
        row, start = 8 + t, int(first[b])
        seen = list(range(start, row + 1))
        heads = [2 * g, 2 * g + 1]
        weights = [(k[b, g, seen] @ q[b, h, t] * inputs["factor_BHT"][b, h, t]).softmax(0) for h in heads]
        local = seen[len(seen) - int(inputs["local_BT"][b, t]) :]
        summed = dict(zip(seen, (weights[0] + weights[1]).tolist(), strict=True))
        others = sorted((c for c in seen if c not in local), key=lambda c: -summed[c])
        want = set(local) | set(others[: int(inputs["budget_BT"][b, t]) - len(local)])
        words = found.bits_BGTW[b, g, t].tolist()
        assert {start + i for i in range(32 * len(words)) if words[i // 32] >> (i % 32) & 1} == want
        for h, weight in zip(heads, weights, strict=True):
            inside = sum(float(weight[c - start]) for c in want)
            assert float(found.inside_BHT[b, h, t]) == pytest.approx(inside)


@pytest.mark.parametrize("part", [32, 1024])
def test_of_equal_ranks_the_first_are_chosen(part, device, monkeypatch):
    """Broken: rows without any weight are chosen at random once the budget exceeds those with some."""
    monkeypatch.setattr("lacuna.kernels.sparq_rows.fused.PART", part)
    given = inputs_of(queries=5, layout="plain").items()
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in given}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    inputs["k_BGSD"][:, :, 5::3] = inputs["k_BGSD"][:, :, 5:6]
    inputs["factor_BHT"] *= 20000  # all weight on one key: the others are zero
    with poisoned_memory():
        found = OP.fused(**inputs)
    assert torch.equal(found.bits_BGTW, OP.eager(**inputs).bits_BGTW)


@pytest.mark.parametrize("break_", ["worse", "fewer", "unseen", "weight"])
def test_another_choice_is_found(break_):
    """Broken: a kernel that chooses any keys passes its verification."""
    inputs = inputs_of(layout="plain")
    right = OP.eager(**inputs)
    bits, inside = right.bits_BGTW.clone(), right.inside_BHT.clone()
    if break_ == "worse":  # of row 34 the best of the first keys for one that was left out
        chosen = [i for i in range(20) if bits[0, 0, 34, 0] >> i & 1]
        bits[0, 0, 34, 0] ^= (1 << chosen[0]) | (1 << next(i for i in range(20) if i not in chosen))
    elif break_ == "fewer":
        bits[0, 0, 34, 0] = 0
    elif break_ == "unseen":
        bits[0, 0, 0, 1] |= 4
    else:
        inside[0, 0, 3] *= 0.9
    assert compare_choices(inputs, right, right).error < 1e-12
    wrong = compare_choices(inputs, Rows(bits, inside), right)
    assert wrong.reason or wrong.error > 1e-6


@pytest.mark.parametrize("case", CASES[1:], ids=lambda case: case.name)
def test_rows_of_several_parts_are_the_same(case, device, monkeypatch):
    """Broken: in texts longer than what is looked at at once SparQ chooses other keys, or loses its local ones."""
    monkeypatch.setattr("lacuna.kernels.sparq_rows.fused.PART", 32)
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict
