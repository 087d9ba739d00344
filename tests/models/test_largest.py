"""The largest scores of rows, against a sort by hand.

Shape legend: B batch, N sets, T query rows, S scores.
"""

import math

import pytest
import torch

from lacuna.models.attend import any_of, count_of, largest


def chosen(scores, k):
    """By score, then by place; what is nothing is not chosen."""
    order = sorted((i for i, score in enumerate(scores) if score > -math.inf), key=lambda i: (-scores[i], i))
    return [i in order[: max(k, 0)] for i in range(len(scores))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("kind", ["apart", "equal", "holes", "one value"])
def test_each_row_keeps_its_own_number_and_the_first_of_equals(kind, dtype):
    """Broken: a row keeps more or fewer than its own k, another one of equal scores than the first, or nothing."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2, 3, 5, 17, generator=generator)
    if kind != "apart":
        scores = (2 * scores).round()
    if kind == "holes" and dtype.is_floating_point:
        scores[torch.rand(scores.shape, generator=generator) < 0.4] = -torch.inf
        scores[0, 0, 0] = -torch.inf
    scores = (torch.zeros_like(scores) if kind == "one value" else 8 * scores).to(dtype)
    k_BT, k_BNT = (torch.randint(0, 20, shape, generator=generator) for shape in ((2, 5), (2, 3, 5)))
    for k in (k_BT, k_BNT):
        each = k[:, None].expand(2, 3, 5) if k.ndim == 2 else k
        rows = zip(scores.flatten(0, 2).tolist(), each.flatten().tolist(), strict=True)
        expected = torch.tensor([chosen(row, many) for row, many in rows]).view_as(scores)
        assert torch.equal(largest(scores, k), expected)


def test_booleans_are_counted_as_they_are():
    """Broken: a count of more than 255 rows overflows, or a slice of a mask is read at other places."""
    keep = torch.zeros(2, 3, 700, dtype=torch.bool)
    keep[0, 0], keep[1, 2, 5] = True, True
    assert count_of(keep)[..., 0].tolist() == [[700, 0, 0], [0, 0, 1]]
    assert any_of(keep.transpose(1, 2)[:, 5:, 1:]).sum((1, 2)).tolist() == [0, 1]
