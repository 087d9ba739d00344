"""The share of a softmax that lies on chosen rows, against the softmax itself in float64.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, K width of the index.
"""

import pytest
import torch

import lacuna.kernels.chosen_share.fused as fused
from lacuna.kernels.chosen_share import OP as CHOSEN_SHARE
from lacuna.kernels.verify import poisoned_memory

both = pytest.mark.parametrize("twin", ["eager", "fused"])
SHAPES = ((3, 4, 1, 57, 21), (2, 3, 3, 40, 40), (2, 8, 2, 131, 1), (2, 4, 4, 9001, 5003))


def drawn(shape, device):
    """The arguments, and the share of each head: text b sees its rows from b on, and set g has its own number of them.

    What must not be read says so: scores of rows not chosen are NaN, and past a count stands such a row, if there is one.
    """
    batch, heads, groups, rows, width = shape
    generator = torch.Generator().manual_seed(rows)
    score_BHS = torch.randn(batch, heads, rows, generator=generator) * 4 - 30
    index_BGK = torch.zeros(batch, groups, width, dtype=torch.int32)
    count_BG = torch.randint(0, width - batch + 2, (batch, groups), generator=generator).int()
    count_BG[0, 0], count_BG[-1, -1] = width, 0
    lse_BH, want_BH = torch.empty(2, batch, heads, dtype=torch.float64)
    for b, h in torch.cartesian_prod(torch.arange(batch), torch.arange(heads)).tolist():
        group = h // (heads // groups)
        count = int(count_BG[b, group])
        if h % (heads // groups) == 0:
            order = b + torch.randperm(rows - b, generator=generator)
            index_BGK[b, group, :count], index_BGK[b, group, count:] = order[:count].sort().values, order[-1]
        chosen = index_BGK[b, group, :count].long()
        seen = score_BHS[b, h].double()
        seen[:b] = -torch.inf
        lse_BH[b, h], want_BH[b, h] = seen.logsumexp(0), seen.softmax(0)[chosen].sum()
        hidden = torch.ones(rows, dtype=torch.bool).index_fill(0, chosen, False)
        score_BHS[b, h, hidden] = torch.nan
    return tuple(x.to(device) for x in (score_BHS, lse_BH.float(), index_BGK, count_BG)), want_BH


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_share_is_that_of_the_softmax(shape, twin, device):
    """Broken: a head has another set's rows, a row past the count or one not chosen weighs, or tiles lose some."""
    arguments, want_BH = drawn(shape, device)
    with poisoned_memory():
        share_BH = getattr(CHOSEN_SHARE, twin)(*arguments)
    assert share_BH.dtype == torch.float32
    assert not share_BH[-1, -1]
    torch.testing.assert_close(share_BH.double().cpu(), want_BH, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("tile", [4, 32])
@pytest.mark.parametrize("many", [1, 1000], ids=["heads fill the GPU", "few heads"])
def test_any_tile_gives_the_same(tile, many, device, monkeypatch):
    """Broken: rows at the borders of tiles are lost or counted twice, or few heads are cut another way and wrong."""
    arguments, want_BH = drawn(SHAPES[0], device)
    monkeypatch.setattr(fused, "multiprocessors", lambda _: many)
    monkeypatch.setattr(fused, "FEW_ROWS" if many > 1 else "MANY_ROWS", tile)
    monkeypatch.setattr(fused, "MANY_ROWS" if many > 1 else "FEW_ROWS", 3)  # no tile: it must not be used
    torch.testing.assert_close(CHOSEN_SHARE.fused(*arguments).double().cpu(), want_BH, rtol=3e-6, atol=1e-7)


@both
def test_arguments_lie_as_they_lie(twin, device):
    """Broken: what is a view of something wider is read as if it were dense."""
    arguments, want_BH = drawn(SHAPES[0], device)
    apart = [torch.stack([x, torch.full_like(x, 7)], -1)[..., 0] for x in arguments]
    torch.testing.assert_close(getattr(CHOSEN_SHARE, twin)(*apart).double().cpu(), want_BH, rtol=3e-6, atol=1e-7)


def test_scores_of_another_kind_are_refused(device):
    """Broken: the bits of other scores are read as float32."""
    (score_BHS, *others), _ = drawn(SHAPES[0], device)
    with pytest.raises(ValueError, match=r"expected float32 scores, got torch\.float16"):
        CHOSEN_SHARE.fused(score_BHS.half(), *others)
