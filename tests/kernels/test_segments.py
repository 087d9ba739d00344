"""Attention to rows that lie at the beginnings of segments, which are as full as thresholds make them.

Shape legend: B batch, G KV heads, K width of the index, X segments, W = K / X rows of one.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from lacuna.kernels.gather_decode import fused
from lacuna.kernels.gather_decode.fused import gather_decode
from lacuna.kernels.tiling import Plan, even_plan

SPEC = importlib.util.spec_from_file_location("definitions", Path(__file__).with_name("definitions.py"))
definitions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(definitions)

HEAD_DIM, HEADS, ROWS = 64, 4, 700


def drawn(counts, width, device, groups=2):
    """A cache, and an index of as many rows in each segment; what is behind them must not be looked at."""
    generator = torch.Generator().manual_seed(0)
    batch, segments = len(counts), len(counts[0])
    q_BHD = torch.randn(batch, HEADS, HEAD_DIM, generator=generator)
    k_BGSD, v_BGSD = (torch.randn(batch, groups, ROWS, HEAD_DIM, generator=generator) for _ in range(2))
    index_BGXW = torch.full((batch, groups, segments, width), 2**30, dtype=torch.int32)
    for text, row in enumerate(counts):
        for group in range(groups):
            named = torch.randperm(ROWS, generator=generator)[: sum(row)].sort().values.int().split(row)
            for segment, part in enumerate(named):
                index_BGXW[text, group, segment, : row[segment]] = part
    count_BGX = torch.tensor(counts, dtype=torch.int32)[:, None].expand(-1, groups, -1).contiguous()
    given = q_BHD, k_BGSD, v_BGSD, index_BGXW.flatten(2), count_BGX
    return [tensor.to(device) for tensor in given], definition(*given)


def definition(q_BHD, k_BGSD, v_BGSD, index_BGK, count_BGX):
    named_BGK = torch.zeros_like(index_BGK)
    segments = index_BGK.unflatten(2, (count_BGX.shape[2], -1))
    for place, counts in enumerate(count_BGX.flatten(0, 1)):
        text, group = divmod(place, count_BGX.shape[1])
        rows = torch.cat([part[:count] for part, count in zip(segments[text, group], counts, strict=True)])
        named_BGK[text, group, : len(rows)] = rows
    return definitions.gather_decode(q_BHD, k_BGSD, v_BGSD, named_BGK, count_BGX.sum(-1), 0.125)


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("counts", [[[0, 100, 0], [1, 0, 37]], [[16, 32, 100, 5, 0], [0, 0, 0, 0, 0]]])
def test_no_row_is_lost_between_segments_and_blocks(counts, splits, device):
    """Broken: a tile runs over into the next segment, or the last of a segment, or of a block's share, is left out."""
    given, expected = drawn(counts, 100, device)
    found = gather_decode(*given, 0.125, Plan(16, splits, 4, 3))
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=2e-5)


def test_the_fullest_segment_is_shared_by_all_blocks(device, monkeypatch):
    """Broken: of four blocks one attends to all rows, as thresholds passed in one segment only, and three idle."""
    seen = []
    combine = fused.combine
    monkeypatch.setattr(fused, "combine", lambda share, lse, *more: seen.append(lse) or combine(share, lse, *more))
    given, expected = drawn([[0, 0, 128, 0]], 128, device)
    found = gather_decode(*given, 0.125, Plan(16, 4, 4, 3))
    torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=2e-5)
    assert seen[0].isfinite().all()


def test_all_blocks_of_a_gpu_run_at_once():
    """Broken: 512 sets are cut into blocks of which a third waits, or short rows into crumbs."""
    splits = {(128, 4096): 4, (8, 131072): 66, (512, 16384): 1, (640, 4096): 1, (8, 512): 4, (1000, 4096): 3}
    for (pairs, rows), count in splits.items():
        assert even_plan(Plan(32, 3, 1, 6), pairs, rows, 132) == Plan(32, count, 1, 6)
