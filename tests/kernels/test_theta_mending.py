"""Sets out of their bounds, which several blocks mend together, against the eager twin on scores that are exact.

On a GPU the blocks run as they do there, elsewhere in threads under Triton's interpreter.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, R dims, X segments.
"""

import importlib
import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lacuna.kernels.theta_rows.eager import theta_rows as eager
from lacuna.kernels.theta_rows.mend import MendPlan, mend_plan
from lacuna.kernels.verify import poisoned_memory

SPEC = importlib.util.spec_from_file_location("at_once", Path(__file__).with_name("at_once.py"))
at_once = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(at_once)
fused = importlib.import_module("lacuna.kernels.theta_rows.fused")
GPU = torch.cuda.is_available()
SEGMENTS = (1, 4, 7, 66) if GPU else (1, 3, 9)
KINDS = ("few", "many", "equal", "infinite")
# sizes: texts, query heads, KV heads, rows
SIZES = ((4, 8, 2, 4500), (2, 4, 4, 9001), (3, 32, 2, 2300)) if GPU else ((3, 3, 1, 97), (2, 2, 2, 120))
gpu_only = pytest.mark.skipif(not GPU, reason="needs a GPU")


def exact(size, kind, out, segments, device, dtype=torch.float32, dims=32):
    """Whole numbers, whose products no dtype rounds: many scores are equal, also the k-th and those of other segments.

    Of the sets every `out`-th is out of bounds, or none. Rows are visible to all, to some, to none, in one segment.
    """
    (batch, heads, groups, rows), draw = size, torch.Generator().manual_seed(segments)
    q = torch.randint(-2, 3, (batch, heads, dims), generator=draw)
    k = torch.randint(-2, 3, (batch, groups, rows, dims), generator=draw)
    if kind == "equal":
        k = k[:, :, :1].expand_as(k)
    q, k = q.to(device, dtype), k.to(device, dtype).contiguous()
    if kind == "infinite":
        q[..., 0] = 1
        k[:, :, ::7, 0], k[:, :, 3::5, 0] = math.inf, -math.inf
    width = -(-rows // segments)
    spans = [(0, rows), (5, rows - 7), (rows // 2, rows // 2), (width * (segments - 1), rows)][:batch]
    lo, hi = torch.tensor(spans, dtype=torch.int32, device=device).T.contiguous()
    threshold = torch.full((batch, groups), 0.6, device=device)
    threshold.view(-1)[::out] = -1e4 if kind == "many" else 1e4
    bounds = torch.tensor([(rows // 4, rows // 3), (7, rows // 5), (3, 9), (1, rows // 2)][:batch], device=device).int()
    if out > batch * groups:
        threshold[0, 0] = 0.6
    return {"q_BHR": q, "k_BGSR": k, "lo_B": lo, "hi_B": hi, "scale": 0.125, "threshold_BG": threshold,
            "least_B": bounds[:, 0].contiguous(), "most_B": bounds[:, 1].contiguous(), "segments": segments}  # fmt: skip


def chosen(index_BGK, count_BGX):
    """Rows of each set, as a tuple."""
    places = index_BGK.unflatten(2, (count_BGX.shape[2], -1)).tolist()
    pairs = [[list(zip(*set_, strict=True)) for set_ in zip(*text, strict=True)]
             for text in zip(places, count_BGX.tolist(), strict=True)]  # fmt: skip
    return [[[tuple(rows[:count]) for rows, count in set_] for set_ in text] for text in pairs]


def assert_as_eager(inputs, output, kind):
    """The same rows in the same places, and the same shares."""
    index_BGK, count_BGX, share_BH = output
    expected = eager(**inputs)
    assert chosen(index_BGK, count_BGX) == chosen(*expected[:2])
    if kind == "infinite":  # the softmax of infinite scores is none; of those that are left a part has a share
        assert bool(share_BH.isfinite().all())
    else:
        torch.testing.assert_close(share_BH, expected[2], rtol=1e-4, atol=1e-6)


def together(inputs, monkeypatch):
    """Sets mended by blocks that wait for each other also where no GPU is: few, of few rows."""
    if GPU:
        return fused.theta_rows(**inputs)
    monkeypatch.setattr(fused, "bound_kernel", at_once.AtOnce(fused.bound_kernel))
    return fused.theta_rows(**inputs, mend=MendPlan(slots=8, most_chunks=4, boards=4, block_rows=16))


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("out", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sets_are_mended_by_many_blocks_as_by_one(size, kind, out, segments, device, monkeypatch):
    """Broken: blocks that share a set choose other rows than the best, or another row of those that are equal."""
    inputs = exact(size, kind, out, segments, device)
    with poisoned_memory():
        assert_as_eager(inputs, together(inputs, monkeypatch), kind)


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_heads_too_light_for_float32_are_summed_by_many_blocks(size, segments, device, monkeypatch):
    """Broken: a head far below the others of its group is told no share, or that of some blocks alone."""
    inputs = exact(size, "few", 1000, segments, device)
    inputs |= {"scale": 0.75, "least_B": inputs["least_B"] * 0, "most_B": inputs["most_B"] * 0 + size[3]}
    inputs["q_BHR"][:, 0] *= 0
    inputs["q_BHR"][:, 0, 1], inputs["k_BGSR"][:, :, :, 1] = 1, -200
    inputs["threshold_BG"][:] = 3.0
    inputs["q_BHR"][:, 1:, 1] = 0
    assert_as_eager(inputs, together(inputs, monkeypatch), "few")


def test_no_set_is_mended_where_none_is_out(device, monkeypatch):
    """Broken: sets within their bounds are scored twice."""
    inputs = exact(SIZES[0], "few", 1000, 3, device)
    inputs |= {"least_B": inputs["least_B"] * 0, "most_B": inputs["most_B"] * 0 + SIZES[0][3]}
    ranks = []
    kernel = fused.bound_kernel

    class Seen:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                ranks.append(arguments[11].fill_(math.nan))
                kernel[grid](*arguments, **options)

            return launch

    monkeypatch.setattr(fused, "bound_kernel", Seen())
    assert_as_eager(inputs, fused.theta_rows(**inputs), "few")
    assert bool(ranks[0].isnan().all())


@gpu_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dims", [16, 24, 64, 128])
def test_sets_of_halves_and_other_widths_are_mended(dtype, dims, device):
    """Broken: tiles of another form than those of 32 numbers are scored otherwise the second time."""
    for kind in KINDS:
        inputs = exact((3, 16, 4, 5003), kind, 2, 4, device, dtype, dims)
        assert_as_eager(inputs, fused.theta_rows(**inputs), kind)


@gpu_only
@pytest.mark.parametrize(("out", "segments"), [(1, 4), (2, 66), (100, 1)])
def test_mending_again_and_again_finds_the_same(out, segments, device):
    """Broken: a block reads what another has not written yet, once in many launches, or waits for ever."""
    inputs = exact((4, 32, 8, 20011), "few", out, segments, device, torch.bfloat16)
    expected = eager(**inputs)
    rows = fused.theta_rows(**inputs)
    assert_as_eager(inputs, rows, "few")
    place = torch.arange(rows[0].shape[2], device=device) % (rows[0].shape[2] // segments)
    there = place < rows[1].repeat_interleave(rows[0].shape[2] // segments, 2)
    for _ in range(1500):
        again = fused.theta_rows(**inputs)
        assert torch.equal(again[1], rows[1])
        assert bool(((again[0] == rows[0]) | ~there).all())
        assert torch.equal(again[2], rows[2])
    torch.testing.assert_close(rows[2], expected[2], rtol=1e-4, atol=1e-6)


@gpu_only
def test_two_streams_mend_at_once(device):
    """Broken: launches that fill the GPU together wait for blocks that never start."""
    inputs = [exact((2, 32, 8, 40011), "few", out, 4, device, torch.bfloat16) for out in (1, 16)]
    expected = [fused.theta_rows(**each) for each in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(100):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[number].append(fused.theta_rows(**inputs[number])[1:])
    torch.cuda.synchronize()
    for want, outputs in zip(expected, found, strict=True):
        for each in outputs:
            assert torch.equal(each[0], want[1])
            assert torch.equal(each[1], want[2])


def test_a_set_is_shared_by_few_enough_blocks():
    """Broken: four launches at once, of which each waits for blocks that have not started, fill a GPU of two an SM; or a width that Triton 3.6 cannot compile."""
    plans = [mend_plan(sets, rows, 32, 2, 132) for sets in (1, 128, 640) for rows in (500, 32768, 1 << 21)]
    assert all(4 * (plan.most_chunks - 1) < plan.slots for plan in plans)
    assert [plan.most_chunks for plan in plans[:3]] == [1, 64, 64]
    # a set that several blocks share has a board, however many there are
    assert all(plan.boards >= min(sets, plan.slots // 2) for plan, sets in zip(plans[1:3], (1, 1), strict=True))
    assert mend_plan(640, 32768, 32, 2, 132).boards == 132
    assert mend_plan(640, 32768, 32, 2, 1).most_chunks == 1
