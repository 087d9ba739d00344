"""Rows above thresholds within bounds against their definition: one set after the other, in float64.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, X segments.
"""

import importlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lacuna.harness.real_keys import RealKeys
from lacuna.jobs.inputs import Inputs
from lacuna.kernels.drawn import drawn_from
from lacuna.kernels.op import Case
from lacuna.kernels.tiling import Plan, theta_segments
from lacuna.results.store import Store

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)
# of sums that are not less, what float32 cuts off below 2^-126 is less than 2^-45 for a million rows
SMALLEST = 2.0**-61


def definition(q_BHR, k_BGSR, lo_B, hi_B, scale, threshold_BG, least_B, most_B, segments):
    """Rows of each set, and each head's share of the softmax."""
    q, k = q_BHR.double().cpu(), k_BGSR.double().cpu()
    group, rows, shares = q.shape[1] // k.shape[1], {}, torch.zeros(q.shape[:2], dtype=torch.float64)
    for b, (lo, hi) in enumerate(zip(lo_B.tolist(), hi_B.tolist(), strict=True)):
        for g in range(k.shape[1]):
            scores = k[b, g, lo:hi] @ q[b, g * group : (g + 1) * group].T * scale  # [rows, J]
            rank = scores.max(1).values.tolist() if hi > lo else []
            chosen = [row for row, score in enumerate(rank) if score > float(threshold_BG[b, g])]
            count = min(max(len(chosen), int(least_B[b])), int(most_B[b]), hi - lo)
            if count != len(chosen):
                chosen = sorted(sorted(range(hi - lo), key=lambda row: (-rank[row], row))[:count])
            rows[b, g] = [lo + row for row in chosen]
            if hi > lo:
                shares[b, g * group : (g + 1) * group] = scores.softmax(0)[chosen].sum(0)
    return rows, shares


@ops.both
@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("theta", ["between", "above all", "below all", "mixed", "nan"])
@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_rows_are_those_above_or_as_many_as_bounds_allow(case, theta, segments, twin, device):
    """Broken: a set out of its bounds is not the best rows, or its weight is told as that of other rows."""
    inputs = ops.inputs_of("theta_rows", case, device) | {"segments": segments}
    thresholds = inputs["threshold_BG"]
    scored = [inputs[name] for name in ("q_BHR", "k_BGSR", "lo_B", "hi_B")]
    best = ops.load_op("lowrank_score")(*scored, "max") * inputs["scale"]
    between = best.topk(case.kept + 1, -1).values[..., -2:].mean(-1).nan_to_num(0.0, 0.0, -1.0)
    values = {"above all": 1e4, "below all": -math.inf, "mixed": 0.1, "nan": math.nan}
    thresholds.copy_(torch.full_like(between, values[theta]) if theta in values else between)
    index_BGK, count_BGX, share_BH = ops.run("theta_rows", twin, inputs)
    rows, shares = definition(**inputs)
    width = index_BGK.shape[-1] // segments
    for (b, g), want in rows.items():
        kept = [index_BGK[b, g, x * width : x * width + n] for x, n in enumerate(count_BGX[b, g].tolist())]
        assert torch.cat(kept).tolist() == want
    torch.testing.assert_close(share_BH.double().cpu(), shares, rtol=1e-5, atol=1e-6)


@ops.both
def test_equal_scores_go_to_the_lowest_rows(twin, device):
    """Broken: which of equal rows is chosen depends on the machine, and scores differ from run to run."""
    inputs = ops.inputs_of("theta_rows", ops.SHAPES[2], device)
    inputs["k_BGSR"][:] = inputs["k_BGSR"][:, :, :1]
    inputs["lo_B"].fill_(3)
    inputs["hi_B"].fill_(100)
    inputs["threshold_BG"].fill_(1e4)
    inputs["least_B"].fill_(5)
    inputs["most_B"].fill_(9)
    index_BGK, count_BGX, share_BH = ops.run("theta_rows", twin, inputs | {"segments": 1})
    assert count_BGX.unique().tolist() == [5]
    assert index_BGK[..., :5].reshape(-1, 5).unique(dim=0).tolist() == [[3, 4, 5, 6, 7]]
    torch.testing.assert_close(share_BH, torch.full_like(share_BH, 5 / 97), rtol=1e-5, atol=0)


@ops.both
@pytest.mark.parametrize(("theta", "least"), [(-math.inf, 1), (180.0, 1), (-400.0, 1), (0.0, 40)])
@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_weights_that_leave_float32_are_summed_again(case, theta, least, twin, device):
    """Broken: weights held against a far threshold overflow, or vanish with all of a head's, and shares are wrong."""
    inputs = ops.inputs_of("theta_rows", case, device)
    inputs["scale"] *= 40
    inputs["q_BHR"][:, 0] *= 1e-3  # a head whose scores all lie far below those of its group
    inputs["threshold_BG"].fill_(theta)
    inputs["least_B"].fill_(least)
    inputs["most_B"].fill_(1000)
    _, count_BGX, share_BH = ops.run("theta_rows", twin, inputs)
    rows, shares = definition(**inputs)
    torch.testing.assert_close(share_BH.double().cpu(), shares, atol=2e-4, rtol=1e-3)
    counts = count_BGX.sum(-1).cpu()
    assert all(int(counts[b, g]) == len(chosen) for (b, g), chosen in rows.items())


class Recorder:
    """Stands for the second launch: keeps the sums that the first one gave it, and the ranks of sets scored again."""

    def __init__(self, kernel):
        self.kernel, self.sums, self.ranks = kernel, None, None

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.sums = next(
                each for each in arguments if torch.is_tensor(each) and each.ndim == 4 and each.shape[-1] == 2
            )
            self.ranks = arguments[11].fill_(torch.nan)  # written for sets that are scored again
            assert self.ranks.ndim == 3
            self.kernel[grid](*arguments, **options)

        return launch


def peaked(case, peak, device):
    """Keys of a steep spectrum, some of which score `peak` nats above what K rows pass, as keys of real text do."""
    inputs = ops.inputs_of("theta_rows", case, device)
    q, k = inputs["q_BHR"], inputs["k_BGSR"]
    k *= torch.arange(1, k.shape[-1] + 1, device=device) ** -1.0
    group = q.shape[1] // k.shape[1]
    mean_BGR = q.unflatten(1, (-1, group)).mean(2)
    k[:, :, ::9] += mean_BGR[:, :, None] * (peak / (mean_BGR.square().sum(-1) * inputs["scale"]))[..., None, None]
    best = ops.load_op("lowrank_score")(q, k, inputs["lo_B"], inputs["hi_B"], "max") * inputs["scale"]
    between = best.topk(case.kept + 1, -1).values[..., -2:].mean(-1).nan_to_num(0.0, 0.0, -1.0)
    return inputs | {"threshold_BG": between, "least_B": torch.ones_like(inputs["lo_B"])}


def assert_sums_need_no_second_look(inputs, monkeypatch):
    """The first launch's sums give each head's share, and no set within its bounds is scored again."""
    module = importlib.import_module("lacuna.kernels.theta_rows.fused")
    monkeypatch.setattr(module, "bound_kernel", recorder := Recorder(module.bound_kernel))
    _, count_BGX, share_BH = ops.run("theta_rows", "fused", inputs)
    rows, shares = definition(**inputs)
    torch.testing.assert_close(share_BH.double().cpu(), shares, rtol=1e-4, atol=1e-6)
    assert count_BGX.sum(-1).flatten().tolist() == [len(chosen) for chosen in rows.values()]
    assert bool(recorder.ranks.isnan().all())
    whole, kept = recorder.sums.double().cpu().sum(2).unbind(-1)
    seen = (inputs["hi_B"] > inputs["lo_B"]).cpu()
    assert bool((whole[seen] >= SMALLEST).all() & whole.isfinite().all())
    torch.testing.assert_close((kept / whole)[seen], shares[seen], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("peak", [20.0, 90.0, 170.0])
@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_peaks_far_above_the_threshold_are_not_summed_again(case, peak, device, monkeypatch):
    """Broken: sets of peaked keys are each scored anew by one block, which took 2.1 ms in place of 0.03 on a GPU."""
    assert_sums_need_no_second_look(peaked(case, peak, device), monkeypatch)


@pytest.mark.parametrize("case", ops.SHAPES[:3], ids=lambda case: case.name)
def test_rows_beyond_the_last_add_nothing_under_thresholds_far_below_zero(case, device, monkeypatch):
    """Broken: what lies beyond the last row scores 0, far above such a threshold, and its weight is told as NaN."""
    inputs = peaked(case, 30.0, device)
    offset = inputs["q_BHR"].new_zeros(inputs["q_BHR"].shape[-1])
    offset[0] = 1.0
    inputs["q_BHR"][..., 0] = 1.0
    inputs["k_BGSR"] -= 150.0 / inputs["scale"] * offset
    best = ops.load_op("lowrank_score")(*(inputs[n] for n in ("q_BHR", "k_BGSR", "lo_B", "hi_B")), "max")
    between = (best * inputs["scale"]).topk(case.kept + 1, -1).values[..., -2:].mean(-1).nan_to_num(0.0, 0.0, -1.0)
    assert float(between.amin()) < -100
    assert_sums_need_no_second_look(inputs | {"threshold_BG": between}, monkeypatch)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    spec = Inputs(Path(__file__).parents[2], Store(tmp_path_factory.mktemp("store"))).zoo("pocket")
    return RealKeys(spec, torch.device("cpu"), window=512, windows=2)


def test_keys_of_a_model_are_summed_once(pocket, device, monkeypatch):
    """Broken: the keys of a model over prose, whose best rows stand out, take another path than random ones."""
    case = Case("pocket", 2, 8, 4, 1000, head_dim=128, low_dims=32, kept=250, dtype="float32", visible="full")
    with drawn_from(pocket):
        inputs = ops.load_op("theta_rows").make(case, device, 0)
    assert_sums_need_no_second_look(inputs, monkeypatch)


def test_sets_are_shared_by_four_blocks_an_sm_where_rows_are_many():
    """Broken: 128 sets of 16384 rows are chosen from by three blocks each, or short rows are cut into crumbs."""
    chosen = Plan(32, 3, 1, 6)
    assert [theta_segments(pairs, 16384, chosen, 132) for pairs in (640, 512, 128)] == [1, 1, 4]
    assert theta_segments(8, 131072, chosen, 132) == 66
    assert theta_segments(128, 4096, chosen, 132) == 3
