"""Parts of several ranks, summed in one launch by each of them.

Shape legend: B texts, E hidden size, X ranks, C rows of a part.
"""

import pytest
import torch

from lacuna.kernels.sum_norm import OP as SUM_NORM
from lacuna.kernels.sum_norm.meeting import Meeting, addresses_of


def ranks_of(parts, rows, device):
    """A meeting for each rank of one process, and everyone's flags."""
    flags = tuple(torch.zeros(rows, len(parts), dtype=torch.int32, device=device) for _ in parts)
    tables = addresses_of(parts), addresses_of(flags)
    counts = [torch.zeros(rows, dtype=torch.int32, device=device) for _ in parts]
    return [Meeting(*tables, counts[rank], rank, flags) for rank in range(len(parts))], flags


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_gets_the_same_sum_and_tells_the_others(ranks, device):
    """Broken: ranks drift apart, wait for one that has long come, or leave one waiting that they have passed."""
    parts = tuple(torch.randn(5, 48, device=device) for _ in range(ranks))  # room for more texts than there are
    x_BE, weight_E = torch.randn(3, 48, device=device), torch.randn(48, device=device)
    meetings, flags = ranks_of(parts, 5, device)
    results = []
    for turn in (1, 2):
        for rank, meeting in enumerate(meetings):
            flags[rank].fill_(turn)  # the others have come to this sum: on one GPU none could wait for the next
            results.append(SUM_NORM.fused(x_BE, weight_E, 1e-5, parts, meeting))
            for peer in set(range(ranks)) - {rank}:
                assert flags[peer][:3, rank].tolist() == [turn] * 3
            assert meeting.count_C.tolist() == [turn] * 3 + [0, 0]
    whole = x_BE.double() + sum(part[:3].double() for part in parts)
    normed = whole / (whole.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_E.double()
    for got in results:
        torch.testing.assert_close(got[0].double(), normed, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[1].double(), whole, atol=1e-5, rtol=1e-5)
        assert torch.equal(got[0], results[0][0])


def test_a_rank_that_never_comes_is_nan_and_no_hang(device):
    """Broken: one rank fails, and a kernel of the others spins until someone kills it, or adds up what is not there."""
    parts = tuple(torch.randn(2, 16, device=device) for _ in range(3))
    meetings, flags = ranks_of(parts, 2, device)
    flags[0][:, 1] = 1
    x_BE, weight_E = torch.randn(2, 16, device=device), torch.randn(16, device=device)
    normed_BE, sum_BE = SUM_NORM.fused(x_BE, weight_E, 1e-5, parts, meetings[0]._replace(patience=5))
    assert normed_BE.isnan().all()
    assert sum_BE.isnan().all()


def test_a_part_of_another_dtype_is_refused(device):
    """Broken: bytes of another dtype are added up as if they were numbers."""
    parts = tuple(torch.randn(2, 16, device=device, dtype=torch.float16) for _ in range(2))
    meetings, _ = ranks_of(parts, 2, device)
    with pytest.raises(ValueError, match=r"expected parts of dtype torch\.float32"):
        SUM_NORM.fused(torch.randn(2, 16, device=device), torch.randn(16, device=device), 1e-5, parts, meetings[0])
