"""Rows moved to the beginning of their cache, one after the other as lists are."""

import pytest
import torch

from lacuna.kernels.keep_rows import OP as KEEP_ROWS
from lacuna.kernels.keep_rows.fused import columns_of
from lacuna.kernels.verify import poisoned_memory


def moved(rows, index):
    """What a list would hold."""
    out = [row.clone() for row in rows]
    for place, source in enumerate(index.tolist()):
        if source >= 0:
            out[place] = rows[source].clone()
    return torch.stack(out)


INDICES = {
    "down": [0, 3, 4, 90, 170, 199],
    "up": [-1] * 130 + [0, 1, 2],
    "up and down": [-1] * 90 + list(range(20)) + list(range(60, 200, 2)),
    "all": list(range(200)),
    "nothing": [-1, -1],
}


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("name", INDICES)
def test_rows_are_moved_and_none_is_overwritten_unread(name, twin, device):
    """Broken: a row that is read late was overwritten early, or what lies behind the kept rows changes."""
    index = torch.tensor(INDICES[name], device=device)
    rows = torch.randn(2, 2, 200, 72, device=device)
    want = torch.stack([torch.stack([moved(head, index) for head in text]) for text in rows])
    with poisoned_memory():
        got = getattr(KEEP_ROWS, twin)(rows, index.expand(2, 1, -1))
    assert got.data_ptr() == rows.data_ptr()
    assert torch.equal(got, want)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_each_head_keeps_rows_of_its_own_in_a_slice_of_a_longer_cache(twin, device):
    """Broken: a cache that has room behind its rows is moved with the strides of one that has none."""
    rows = torch.randn(2, 3, 90, 64, device=device)
    longer = torch.zeros(2, 3, 128, 80, device=device)
    longer[:, :, :90, :64] = rows
    index = torch.stack([torch.arange(40, device=device) * 2 + g for g in range(3)]).expand(2, -1, -1)
    getattr(KEEP_ROWS, twin)(longer[:, :, :90, :64], index)
    for g in range(3):
        assert torch.equal(longer[0, g, :90, :64], moved(rows[0, g], index[0, g]))
    assert not longer[:, :, 90:].any()
    assert not longer[..., 64:].any()


def test_few_heads_are_shared_by_more_blocks():
    """Broken: one long text is moved by eight of 132 SMs."""
    assert columns_of(128, 128, 132) == 128
    assert columns_of(8, 128, 132) == 16
    assert columns_of(40, 128, 132) == 64
    assert columns_of(640, 72, 132) == 128
    assert columns_of(1, 16, 132) == 16
