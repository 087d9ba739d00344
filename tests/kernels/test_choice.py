"""What one block chooses from scores of any kind: each is found by counting, wherever the first guesses lie.

Shape legend: B batch, N sets of rows, S rows in the cache, K width.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)

LEAST_NORMAL, LEAST, LARGEST = 2.0**-126, 2.0**-149, (2.0 - 2.0**-23) * 2.0**127
POSITIVE = (LEAST, 2 * LEAST, LEAST_NORMAL - LEAST, LEAST_NORMAL, LEAST_NORMAL + LEAST, 1.0, 1.0 + 2.0**-23, LARGEST)
NUMBERS = (0.0, -0.0, *POSITIVE, *(-number for number in POSITIVE), math.inf)


def assert_chosen(s_BNS, k_B, width):
    index_BNK, count_BN = ops.run("select_topk", "fused", {"s_BNS": s_BNS, "k_B": k_B, "width": width})
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, width)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


def drawn(rows, seed, sets=2):
    return torch.randn(1, sets, rows, generator=torch.Generator().manual_seed(seed))


def test_every_kind_of_number_counts_as_itself(device):
    """Broken: a zero, a denormal, an infinity or a NaN counts as another number does, at whichever row the k-th is."""
    numbers = torch.tensor(2 * (*NUMBERS, -math.inf, math.nan, -math.nan), dtype=torch.float32)
    numbers = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))]
    k_B = torch.arange(len(numbers) + 1, dtype=torch.int32, device=device)
    assert_chosen(numbers.expand(len(k_B), 1, -1).contiguous().to(device), k_B, len(numbers))


@pytest.mark.parametrize("rows", [2048, 2100])
def test_scores_of_heavy_tails_are_chosen_exactly(rows, device):
    """Broken: guesses between scores that lie a million times as far apart end the search too early, or never."""
    s_BNS = drawn(rows, 1) * torch.exp(6.0 * drawn(rows, 2))
    for k in (1, rows // 4, rows - 1):
        assert_chosen(s_BNS.to(device), torch.tensor([k], dtype=torch.int32, device=device), rows)


@pytest.mark.parametrize("together", [2, 3, 8])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_scores_in_question_may_lie_with_one_thread(together, shift, device):
    """Broken: where one thread has three scores near the k-th, only two of them are looked at."""
    s_BNS = drawn(2048, 3, sets=3) + shift
    kth = s_BNS.sort(-1, descending=True).values[..., 512:513]
    for line, first in enumerate((100, 512, 2040)):
        s_BNS[0, line, first : first + together] = kth[0, line] + 2.0**-14 * torch.arange(together)
    for k in (511, 512, 514):
        assert_chosen(s_BNS.to(device), torch.tensor([k], dtype=torch.int32, device=device), 520)


@pytest.mark.parametrize("able", [0, 1, 5, 600])
def test_of_fewer_rows_than_are_wanted_all_are_chosen(able, device):
    """Broken: hidden rows fill up a choice, or places past the last row are not -1."""
    s_BNS = drawn(1100, 4)
    order = torch.randperm(1100, generator=torch.Generator().manual_seed(5))
    s_BNS[0, 0, order[able:]], s_BNS[0, 1, order[able:]] = -math.inf, math.nan
    assert_chosen(s_BNS.to(device), torch.tensor([700], dtype=torch.int32, device=device), 700)


@pytest.mark.parametrize(("rows", "width"), [(1, 9), (130, 200), (1100, 1500)])
@pytest.mark.parametrize("k", [0, 1, 5000])
def test_more_places_than_rows_are_filled_with_none(rows, width, k, device):
    """Broken: a choice wider than the cache names rows that it has not, or none is still one."""
    assert_chosen(drawn(rows, 6).to(device), torch.tensor([k], dtype=torch.int32, device=device), width)
