"""Rows moved to the beginning of their cache, one after the other as lists are."""

import pytest
import torch

from lacuna.kernels.keep_rows import OP as KEEP_ROWS
from lacuna.kernels.keep_rows import fused
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


@pytest.mark.parametrize(("twin", "processors"), [("eager", 132), ("fused", 132), ("fused", 1)])
@pytest.mark.parametrize("name", INDICES)
def test_rows_are_moved_and_none_is_overwritten_unread(name, twin, processors, device, monkeypatch):
    """Broken: a row that is read late was overwritten early, by whole rows or by columns, or what lies behind changes."""
    monkeypatch.setattr(fused, "multiprocessors", lambda _device: processors)
    index = torch.tensor(INDICES[name], device=device)
    parts = [torch.randn(2, 2, 200, width, device=device) for width in (72, 24, 1)]
    wants = [torch.stack([torch.stack([moved(head, index) for head in text]) for text in rows]) for rows in parts]
    with poisoned_memory():
        got = getattr(KEEP_ROWS, twin)(*parts, index.expand(2, 1, -1))
    for rows, found, want in zip(parts, got, wants, strict=True):
        assert found is rows
        assert torch.equal(rows, want)


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("held", [1, 2])
def test_each_head_keeps_rows_of_its_own_in_a_slice_of_a_longer_cache(held, twin, device):
    """Broken: a cache that has room behind its rows is moved with the strides of one that has none, or what is not there is."""
    rows = [torch.randn(2, 3, 90, width, device=device) for width in (64, 40)[:held]]
    longer = [torch.zeros(2, 3, 128, 80, device=device) for _ in rows]
    views = [whole[:, :, :90, : part.shape[3]] for whole, part in zip(longer, rows, strict=True)]
    for view, part in zip(views, rows, strict=True):
        view.copy_(part)
    index = torch.stack([torch.arange(40, device=device) * 2 + g for g in range(3)]).expand(2, -1, -1)
    getattr(KEEP_ROWS, twin)(*views, *[None] * (3 - held), index)
    for whole, view, part in zip(longer, views, rows, strict=True):
        for g in range(3):
            assert torch.equal(view[0, g], moved(part[0, g], index[0, g]))
        assert not whole[:, :, 90:].any()
        assert not whole[..., part.shape[3] :].any()


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_tensors_of_other_heads_or_rows_are_refused(twin, device):
    """Broken: blocks of the second tensor would be dealt by the heads of the first, and write beyond its end."""
    rows, index = torch.zeros(2, 2, 9, 16, device=device), torch.zeros(2, 1, 1, dtype=torch.int64, device=device)
    for other in (rows[:1], rows[:, :1], rows[:, :, :8]):
        for beside in ((other, None), (None, other), (rows, other)):
            with pytest.raises(ValueError, match="same texts, heads and rows"):
                getattr(KEEP_ROWS, twin)(rows, *beside, index)


def test_few_heads_are_shared_by_more_blocks():
    """Broken: one long text is moved by eight of 132 SMs."""
    assert columns_of(128, 128, 132) == 128
    assert columns_of(8, 128, 132) == 16
    assert columns_of(40, 128, 132) == 64
    assert columns_of(640, 72, 132) == 128
    assert columns_of(1, 16, 132) == 16
