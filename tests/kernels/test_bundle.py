"""Rows that pass, appended for several tiles by one scan, against `nonzero`.

Shape legend: S rows, T rows of a tile.
"""

import pytest
import torch
import triton
import triton.language as tl

from lacuna.kernels.bundle.fused import appended, bundle_of, flagged


@triton.jit
def keep_kernel(passing_ptr, out_ptr, count_ptr, rows, BLOCK_ROWS: tl.constexpr, TILES: tl.constexpr):
    row, word = tl.arange(0, BLOCK_ROWS), tl.zeros([BLOCK_ROWS], tl.uint32)
    kept = tl.program_id(0) * 0
    filled = kept
    for tile in range(0, rows, BLOCK_ROWS):
        at = tile + row
        word = flagged(word, tl.load(passing_ptr + at, mask=at < rows, other=0) > 0, TILES)
        filled += 1
        if filled == TILES:
            kept, filled = appended(out_ptr, kept, word, tile + BLOCK_ROWS, TILES, TILES), filled * 0
    if filled > 0:
        kept = appended(out_ptr, kept, word, tl.cdiv(rows, BLOCK_ROWS) * BLOCK_ROWS, filled, TILES)
    tl.store(count_ptr, kept)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("block_rows", [16, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("tiles", [0.5, 1, 3.5, 4, 9])
def test_rows_are_appended_in_order_and_none_is_lost(tiles, block_rows, share, device):
    """Broken: a bundle that is full, not full or all of whose rows pass writes rows twice, out of order, or not."""
    rows = int(tiles * block_rows)
    passing = (torch.rand(rows, generator=torch.Generator().manual_seed(rows)) < share).int().to(device)
    out, count = torch.full((rows,), -1, dtype=torch.int32, device=device), passing.new_empty(1)
    keep_kernel[(1,)](passing, out, count, rows, BLOCK_ROWS=block_rows, TILES=bundle_of(block_rows), num_warps=4)
    wanted = passing.nonzero()[:, 0].int()
    assert count.item() == len(wanted)
    assert torch.equal(out[: len(wanted)], wanted)
    assert bool((out[len(wanted) :] == -1).all())


@pytest.mark.parametrize("block_rows", [16, 128, 256, 512, 1024, 32768])
def test_no_field_overflows(block_rows):
    """Broken: a tile all of whose rows pass spills into the count of the next one."""
    assert block_rows < 2 ** (32 // bundle_of(block_rows))
