"""The eager twin of landmark attention against its definition, and its gradient against differences.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from lacuna.kernels.landmark_attention import eager

SPEC = importlib.util.spec_from_file_location("landmark_definition", Path(__file__).with_name("landmark_definition.py"))
definition = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(definition)

# two documents after padding; padding, one document, padding between, one document, padding at the end
STARTS = torch.tensor([[3] * 12 + [12] * 24, [5] * 9 + [13] * 17 + [36] * 10])


def draw(batch, heads, groups, new, rows, dim=8):
    torch.manual_seed(rows)
    shapes = ((heads, new), (groups, rows), (groups, rows))
    return [torch.randn(batch, n, length, dim, dtype=torch.float64) for n, length in shapes]


@pytest.mark.parametrize(("new", "rows", "block"), [(33, 33, 5), (7, 40, 16), (1, 21, 4), (12, 19, 2), (9, 9, 128)])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (3, 1)])
def test_eager_is_the_definition(new, rows, block, heads, groups):
    """Broken: a landmark, an own block, an offset or a group of query heads is treated otherwise than the paper says."""
    q, k, v = draw(2, heads, groups, new, rows)
    expected, total = definition.landmark_attention(q, k, v, block, 0.4)
    torch.testing.assert_close(total, torch.ones_like(total))
    torch.testing.assert_close(eager.landmark_attention(q, k, v, block, 0.4), expected)


@pytest.mark.parametrize("block", [3, 7, 16])
def test_documents_and_padding_are_apart(block):
    """Broken: a packed document sees the one before, blocks are counted from the row's begin, or padding is attended."""
    q, k, v = draw(2, 2, 1, 36, 36)
    expected, _ = definition.landmark_attention(q, k, v, block, 0.4, STARTS)
    k[0, :, :3], v[1, :, 26:] = float("nan"), float("nan")
    found = eager.landmark_attention(q, k, v, block, 0.4, STARTS)
    torch.testing.assert_close(found, expected)
    assert not found[0, :, :3].any()


def test_many_rows_are_attended_in_pieces(monkeypatch):
    """Broken: rows at the borders of pieces are lost, or see what another piece sees."""
    q, k, v = draw(1, 2, 2, 30, 36)
    whole = eager.landmark_forward(q, k, v, 5, 0.4)
    monkeypatch.setattr(eager, "ROWS_AT_ONCE", 7)
    for found, expected in zip(eager.landmark_forward(q, k, v, 5, 0.4), whole, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("starts", [None, torch.tensor([[2] * 8 + [8] * 6])])
def test_gradient_is_that_of_differences(starts):
    """Broken: a model trained with the eager twin follows a wrong gradient, or NaN from padding."""
    q, k, v = (part.requires_grad_() for part in draw(1, 2, 1, 11, 14, 3))
    assert torch.autograd.gradcheck(lambda *qkv: eager.landmark_attention(*qkv, 4, 0.7, starts), (q, k, v))


def test_parts_are_merged_by_their_sums_of_weights():
    """Broken: the sum of weights does not say how much a part weighs beside another."""
    q, k, v = draw(1, 1, 1, 1, 9)
    _, lse = eager.landmark_forward(q, k, v, 5, 0.4)
    score = (q @ k.mT)[0, 0, 0] * 0.4
    torch.testing.assert_close(lse.flatten(), score[4:9].logsumexp(0)[None])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"block": 1}, "block = 1"), ({"k_BGSD": torch.zeros(1, 3, 9, 8), "v_BGSD": torch.zeros(1, 3, 9, 8)}, "divisible"),
     ({"q_BHTD": torch.zeros(1, 2, 10, 8)}, "at most as many"), ({"v_BGSD": torch.zeros(1, 1, 8, 8)}, "one B and D"),
     ({"start_BS": torch.zeros(1, 8)}, "start of shape")],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(change, message):
    """Broken: wrong shapes are broadcast, or fail deep inside."""
    q, k, v = draw(1, 2, 1, 9, 9)
    good = {"q_BHTD": q, "k_BGSD": k, "v_BGSD": v, "block": 4, "scale": 1.0}
    with pytest.raises(ValueError, match=message):
        eager.landmark_attention(**good | change)
