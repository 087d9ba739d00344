"""Landmark attention against a dense definition, written as loops over the paper's groups."""

import itertools
import math

import pytest
import torch

from lacuna.models.landmark import Marks, grouped_attention


def definition(q, k, v, landmark, scale, controlled=None):
    """Section 3.2 row by row: S(i, j) is the softmax of row i within the group of j; fp64."""
    batch, heads, rows, _ = q.shape
    out, weights = torch.zeros_like(q), torch.zeros(batch, heads, rows, rows, dtype=q.dtype)
    for b, h, i in itertools.product(range(batch), range(heads), range(rows)):
        marks = [j for j in range(rows) if landmark[b, j]]
        end = [next((m for m in marks if m >= j), rows) for j in range(rows)]
        if controlled is not None and i == 0:
            continue
        group = {}
        for j in range(i + 1):
            if controlled is not None and j == 0:
                group[j] = ("own",) if any(controlled[b, m] and end[m] != end[i] for m in range(i + 1)) else None
            elif not landmark[b, j]:
                group[j] = ("own",) if end[j] == end[i] else ("block", end[j])
            elif end[j] == end[i]:
                group[j] = None
            else:
                group[j] = ("gated",) if controlled is not None and controlled[b, j] else ("own",)
        score = {j: float(q[b, h, i] @ k[b, h * k.shape[1] // heads, j]) * scale for j in group}
        soft = {j: math.exp(score[j]) / sum(math.exp(score[n]) for n in group if group[n] == g)
                for j, g in group.items() if g}  # fmt: skip
        for j, g in group.items():
            if g and not landmark[b, j] and not (controlled is not None and j == 0):
                share = 1.0
                if g[0] == "block":
                    share = soft[g[1]] * (soft[0] if group[g[1]] == ("gated",) else 1.0)
                weights[b, h, i, j] = soft[j] * share
        out[b, h, i] = weights[b, h, i] @ v[b, h * v.shape[1] // heads]
    return out, weights


def draw(rows, heads=4, groups=2, dim=5, batch=2, dtype=torch.float64, seed=0):
    dice = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, rows, dim), (batch, groups, rows, dim), (batch, groups, rows, dim)]
    return [torch.randn(s, generator=dice, dtype=dtype) * 1.5 for s in shapes]


FIXED = torch.tensor([j % 4 == 3 for j in range(14)]).expand(2, -1)
RANDOM = torch.tensor([[j in (1, 3, 9, 13) for j in range(14)], [j in (2, 5, 7) for j in range(14)]])


@pytest.mark.parametrize("landmark", [FIXED, RANDOM], ids=["fixed", "random"])
def test_is_the_papers_definition(landmark):
    """A wrong group, or a landmark that sees itself, would train another model than the paper's."""
    q, k, v = draw(14)
    want, weights = definition(q, k, v, landmark, 0.5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    torch.testing.assert_close(grouped_attention(q, k, v, Marks(landmark), 0.5), want)


def test_control_token_gates_its_landmarks():
    """Without its gate, cutting off blocks by the control token's score would cut off what training never weighed."""
    q, k, v = draw(15, seed=1)
    landmark = torch.cat([torch.zeros(2, 1, dtype=torch.bool), RANDOM], 1)
    controlled = landmark & torch.tensor([[j in (2, 10, 14) for j in range(15)], [j == 3 for j in range(15)]])
    want, weights = definition(q, k, v, landmark, 0.5, controlled)
    torch.testing.assert_close(weights[:, :, 1:].sum(-1), torch.ones_like(weights[:, :, 1:, 0]))
    torch.testing.assert_close(grouped_attention(q, k, v, Marks(landmark, controlled), 0.5), want)


@pytest.mark.parametrize("controlled", [None, RANDOM])
def test_gradients(controlled):
    """A gradient that is not the function's own would train towards something else; checked by finite differences."""
    q, k, v = (x.requires_grad_() for x in draw(14, heads=2, groups=1, dim=3))
    landmark = RANDOM
    check = torch.autograd.gradcheck(
        lambda *x: grouped_attention(*x, Marks(landmark, controlled), 0.7), (q, k, v), atol=1e-7
    )
    assert check


def test_float32_gradients_are_those_of_the_definition():
    """Single precision must not lose a block whose scores lie far below the others'."""
    q, k, v = draw(14, seed=2)
    k[:, :, 4:7] -= 40
    wide = [x.clone().requires_grad_() for x in (q, k, v)]
    want = definition(*[x.detach() for x in wide], RANDOM, 0.5)[0]
    narrow = [x.detach().float().requires_grad_() for x in (q, k, v)]
    got = grouped_attention(*narrow, Marks(RANDOM), 0.5)
    torch.testing.assert_close(got, want.float(), atol=2e-5, rtol=1e-4)
    pull = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    got.backward(pull)
    grouped_attention(*wide, Marks(RANDOM), 0.5).backward(pull.double())
    for single, double in zip(narrow, wide, strict=True):
        torch.testing.assert_close(single.grad, double.grad.float(), atol=1e-4, rtol=1e-3)


def test_rows_alone_equal_rows_together():
    """Decoding one row over a cache must give what training gave that row."""
    q, k, v = draw(14, seed=4)
    whole = grouped_attention(q, k, v, Marks(FIXED), 0.5)
    torch.testing.assert_close(grouped_attention(q[:, :, -3:], k, v, Marks(FIXED), 0.5), whole[:, :, -3:])


def test_dropout_spares_the_own_block():
    """Dropping rows of the own block would make the first block of each text untrainable."""
    q, k, v = draw(14, seed=5)
    torch.manual_seed(0)
    dropped = grouped_attention(q, k, v, Marks(FIXED), 0.5, dropout=0.5)
    whole = grouped_attention(q, k, v, Marks(FIXED), 0.5)
    assert torch.equal(dropped[:, :, :4], whole[:, :, :4])
    assert not torch.allclose(dropped[:, :, 4:], whole[:, :, 4:])
    mean = sum(grouped_attention(q, k, v, Marks(FIXED), 0.5, dropout=0.3) for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, whole, atol=0.08, rtol=0.1)
