"""Choice by threshold, from scores and while scoring, against its definition.

Shape legend: B batch, G KV heads, S rows in the cache, X segments, K width.
"""

import importlib.util
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from lacuna.kernels.threshold_compact.fused import chunk_of
from lacuna.kernels.tiling import Plan

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)


@ops.both
@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "wide", "hidden"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (130, 200), (1027, 256), (4500, 1000)])
def test_every_row_at_the_threshold_is_chosen(rows, width, kind, twin, device):
    """Broken: a row that passes is missed, doubled or out of order, or an over-full set does not keep the last."""
    s_BNS = ops.scores(kind, rows, device)
    threshold_BN = torch.tensor([[-0.5, 0.5, math.nan], [-math.inf, 1.0, -1.5]], device=device)
    inputs = {"s_BNS": s_BNS, "threshold_BN": threshold_BN, "width": width}
    expected_BNK, expected_BN = ops.definitions.threshold_compact(**inputs)
    for more in ({"chunk_rows": 1024}, {"chunk_rows": 8192}) if twin == "fused" else ({},):
        index_BNK, count_BN = ops.run("threshold_compact", twin, inputs, **more)
        assert index_BNK.dtype == count_BN.dtype == torch.int32
        assert torch.equal(count_BN.long().cpu(), expected_BN)
        assert torch.equal(index_BNK.long().cpu(), expected_BNK)


def test_one_block_a_set_where_sets_fill_the_gpu():
    """Broken: sets that keep all SMs busy are read twice, or few long ones leave most idle."""
    sets = {(128, 16384): 16384, (640, 4096): 4096, (8, 131072): 4096, (8, 16384): 4096, (512, 32768): 32768}
    assert {shape: chunk_of(*shape, 132) for shape in sets} == sets


@ops.both
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("case", ops.SHAPES, ids=lambda case: case.name)
def test_rows_are_kept_as_they_are_scored(case, segments, twin, device):
    """Broken: a row is lost at the border of a segment, or attention over segments is not that over their rows."""
    inputs = ops.inputs_of("threshold_score", case, device) | {"segments": segments}
    inputs["threshold_BG"] -= 1e-3  # no row lies at the threshold, where rounding would decide
    index_BGK, count_BGX = ops.run("threshold_score", twin, inputs)
    scored = {name: inputs[name] for name in ("q_BHR", "k_BGSR", "lo_B", "hi_B", "reduce")}
    s_BGS = ops.definitions.lowrank_score(**scored)
    passing_BGS = (s_BGS >= inputs["threshold_BG"].double().cpu()[..., None]) & (s_BGS > -math.inf)
    width = index_BGK.shape[-1] // segments
    for b, g in product(range(case.batch), range(case.kv_heads)):
        counts = count_BGX[b, g].tolist()
        kept = [index_BGK[b, g, x * width : x * width + count] for x, count in enumerate(counts)]
        assert torch.equal(torch.cat(kept).cpu().long(), passing_BGS[b, g].nonzero().flatten())
    dense = ops.inputs_of("dense_decode", case, device)
    caches = {name: dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")}
    packed = {"index_BNK": packed_rows(index_BGK, count_BGX), "count_BN": count_BGX.sum(-1)}
    segmented = {"index_BNK": index_BGK, "count_BN": count_BGX}
    expected = ops.run("gather_decode", "eager", caches | packed | {"scale": 0.1})
    out = ops.run("gather_decode", twin, caches | segmented | {"scale": 0.1})
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_two_blocks_of_a_segment_attend_to_each_of_its_rows_once(device):
    """Broken: where two blocks share a segment a row is attended to twice, or not at all, or past what the segment holds."""
    case = replace(ops.SHAPES[2], rows=300)
    dense = ops.inputs_of("dense_decode", case, device)
    caches = {name: dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")} | {"scale": 0.1}
    count_BGX = torch.tensor([[[100, 0, 37], [1, 33, 64]], [[0, 0, 0], [65, 100, 2]]], dtype=torch.int32, device=device)
    index_BGK = torch.arange(300, dtype=torch.int32, device=device).expand(2, 2, -1).contiguous()
    packed = {"index_BNK": packed_rows(index_BGK, count_BGX), "count_BN": count_BGX.sum(-1)}
    expected = ops.run("gather_decode", "eager", caches | packed)
    segmented = {"index_BNK": index_BGK, "count_BN": count_BGX}
    for splits in (4, 9):
        out = ops.run("gather_decode", "fused", caches | segmented, plan=Plan(32, splits, 1, 6))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def packed_rows(index_BGK, count_BGX):
    out = torch.full_like(index_BGK, -1)
    width = index_BGK.shape[-1] // count_BGX.shape[-1]
    for b, g in product(range(index_BGK.shape[0]), range(index_BGK.shape[1])):
        kept = torch.cat([index_BGK[b, g, x * width : x * width + int(n)] for x, n in enumerate(count_BGX[b, g])])
        out[b, g, : len(kept)] = kept
    return out
