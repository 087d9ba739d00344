"""Attention above thresholds against its definition: one row and one head after the other, in float64.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, N sets.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)

TERMS = [("pre", "none"), ("pre", "exact"), ("pre", "threshold"), ("pre", "given"), ("post", "exact"), ("post", "none")]


def one_head(scores, ranks, theta, missing, given, factor, largest):
    """Rows kept, weights over exp(largest), and what is missing, of one query head; Top-Theta's equations."""
    kept = [row for row, rank in enumerate(ranks) if rank > theta] or [max(range(len(ranks)), key=ranks.__getitem__)]
    dropped = [row for row in range(len(scores)) if row not in kept]
    weights = [math.exp(score - largest) for score in scores]
    miss = {
        "none": 0.0,
        "exact": sum(weights[row] for row in dropped),
        "threshold": len(dropped) * math.exp(min(theta - largest, 0.0)) if dropped else 0.0,
        "given": given if dropped else 0.0,
    }[missing]
    return kept, weights, miss * factor


def definition(q_BHD, k_BGSD, v_BGSD, lo_B, hi_B, scale, threshold_BN, placement, missing, given_BH, factor,
               sum_BGD, context_B):  # fmt: skip
    assert context_B.tolist() == (hi_B - lo_B).clamp(min=0).tolist()
    q, k, v = (x.double().cpu() for x in (q_BHD, k_BGSD, v_BGSD))
    group, share = q.shape[1] // k.shape[1], q.shape[1] // threshold_BN.shape[1]
    out, lack = torch.zeros_like(q), q.new_zeros(q.shape[:2])
    count = torch.zeros(k.shape[0], k.shape[1], dtype=torch.long)
    for b, (lo, hi) in enumerate(zip(lo_B.tolist(), hi_B.tolist(), strict=True)):
        for g in range(k.shape[1] if hi > lo else 0):
            heads = range(g * group, (g + 1) * group)
            scores = {h: (k[b, g, lo:hi] @ q[b, h] * scale).tolist() for h in heads}
            shares = {h: torch.tensor(scores[h], dtype=torch.float64).softmax(0).tolist() for h in heads}
            signal, union = scores if placement == "pre" else shares, set()
            for h in heads:
                ranks = signal[h] if share == 1 else [max(row) for row in zip(*signal.values(), strict=True)]
                theta, given = float(threshold_BN[b, h // share]), float(given_BH[b, h])
                kept, weights, miss = one_head(scores[h], ranks, theta, missing, given, factor, max(scores[h]))
                whole = sum(weights[row] for row in kept) + miss
                out[b, h] = sum(weights[row] * v[b, g, lo + row] for row in kept) / whole
                lack[b, h] = miss / whole
                out[b, h] += 0 if sum_BGD is None else miss / whole * v[b, g, lo:hi].mean(0)
                union |= set(kept)
            count[b, g] = len(union)
    return out, lack, count


def summed(inputs):
    """Sums of the values of the visible rows, [B, G, D]."""
    rows = zip(inputs["v_BGSD"].float(), inputs["lo_B"].tolist(), inputs["hi_B"].tolist(), strict=True)
    return torch.stack([v_GSD[:, lo : max(lo, hi)].sum(1) for v_GSD, lo, hi in rows])


@ops.both
@pytest.mark.parametrize(("placement", "missing"), TERMS)
@pytest.mark.parametrize("case", ops.SHAPES[1:], ids=lambda case: case.name)
def test_rows_above_a_threshold_are_attended(case, placement, missing, twin, device):
    """Broken: a row at the wrong side of its threshold is attended, or a compensation is not the paper's."""
    inputs = ops.inputs_of("theta_decode", case, device)
    scored = [inputs[name] for name in ("q_BHD", "k_BGSD", "lo_B", "hi_B")]
    signal = ops.load_op("lowrank_score")(*scored, "none") * inputs["scale"]
    signal = signal if placement == "pre" else signal.softmax(-1).nan_to_num(0)
    if case.reduce != "none":
        signal = signal.unflatten(1, (case.kv_heads, -1)).amax(2)
    inputs["threshold_BN"] = signal.topk(case.kept + 1, -1).values[..., -2:].mean(-1).nan_to_num(0.0, 0.0, 0.0)
    inputs["threshold_BN"][0, -1] = math.inf  # nothing exceeds it: the best row is kept
    inputs["threshold_BN"][-1, 0] = -math.inf  # all do
    inputs |= {"placement": placement, "missing": missing}
    inputs["sum_BGD"] = None if missing == "none" else summed(inputs)
    expected = definition(**inputs)
    for got, want in zip(ops.run("theta_decode", twin, inputs), expected, strict=True):
        torch.testing.assert_close(got.double().cpu(), want.double(), rtol=1e-5, atol=1e-5)


@ops.both
def test_values_of_dropped_rows_are_never_read(twin, device):
    """Broken: the value of a row that no head keeps reaches the output, so nothing was saved."""
    inputs = ops.inputs_of("theta_decode", ops.SHAPES[2], device)
    clean = ops.run("theta_decode", twin, inputs)
    case = ops.SHAPES[2]
    scored = [inputs[name] for name in ("q_BHD", "k_BGSD", "lo_B", "hi_B")]
    rank = (ops.load_op("lowrank_score")(*scored, "none") * inputs["scale"]).unflatten(1, (case.kv_heads, -1)).amax(2)
    inputs["v_BGSD"][rank <= inputs["threshold_BN"][..., None]] = math.nan
    assert torch.equal(ops.run("theta_decode", twin, inputs)[0], clean[0])


@pytest.mark.parametrize("terms", [("before", "none"), ("pre", "all"), ("post", "threshold")])
@ops.both
def test_terms_without_meaning_are_refused(terms, twin, device):
    """Broken: a typing error computes something else than what was asked for."""
    inputs = ops.inputs_of("theta_decode", ops.SHAPES[2], device) | dict(
        zip(("placement", "missing"), terms, strict=True)
    )
    with pytest.raises(ValueError, match=terms[1] if terms[0] != "before" else "before"):
        ops.run("theta_decode", twin, inputs)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize(("there", "more", "passes"), [(True, 1, True), (True, 2, False), (False, 1, False)])
def test_a_row_at_the_threshold_may_be_kept_or_not(there, more, passes, placement, device):
    """Broken: rounding of one score of a long cache makes a record invalid, or any other number of rows passes."""
    op = ops.load_op("theta_decode")
    inputs = op.make(ops.Case("one", 1, 2, 1, 200, head_dim=64, low_dims=16, kept=50), device, 0)
    score = (inputs["k_BGSD"][0, 0].double() @ inputs["q_BHD"][0].double().T * inputs["scale"]).T
    score = score[:, int(inputs["lo_B"]) : int(inputs["hi_B"])]
    best = (score if placement == "pre" else score.softmax(-1)).amax(0).sort(descending=True).values
    theta = best[20] if there else (best[20] + best[21]) / 2
    inputs |= {"placement": placement, "missing": "exact", "threshold_BN": theta.float().view(1, 1)}
    out, lack, count = op.reference(inputs)
    assert (op.compare(inputs, (out, lack, count + more), (out, lack, count)).reason == "") is passes
