"""Any block from 16 to 128 rows, behind any offset: the fused twins of landmark attention against its definition.

Shape legend: B batch, H query heads, G KV heads, T query rows, S key rows, D head dim.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from lacuna.kernels.landmark_attention.fused import landmark_forward
from lacuna.kernels.landmark_gradient.fused import landmark_backward
from lacuna.kernels.op import load_op

SPEC = importlib.util.spec_from_file_location("landmark_definition", Path(__file__).with_name("landmark_definition.py"))
definition = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(definition)
GRADIENT = load_op("landmark_gradient")
BLOCKS = (16, 17, 33, 50, 63, 65, 127, 128)
LAYOUTS = ("plain", "packed", "padded")


def inputs_of(block, device):
    """Two texts of a little more than two blocks; another dim, layout and number of queries for each block."""
    which = BLOCKS.index(block)
    rows, new = 2 * block + 11 + which, (7, 2 * block + 11 + which, block + 3)[which % 3]
    torch.manual_seed(block)
    heads, groups, dim = ((2, 2), (2, 1), (4, 2))[which % 3] + ((64, 96, 128)[which // 2 % 3],)
    shapes = ((heads, new), (groups, rows), (groups, rows), (heads, new))
    parts = [torch.randn(2, n, length, dim, device=device) for n, length in shapes]
    starts = {
        "plain": None,
        "packed": [[0] * (block // 2) + [block // 2] * (rows - block // 2), [0] * (block + 5) + [block + 8] * (rows - block - 5)],
        "padded": [[6] * rows, [0] * (rows - 5) + [rows] * 5],
    }[LAYOUTS[which % 3]]  # fmt: skip
    return *parts, dim**-0.5, None if starts is None else torch.tensor(starts, dtype=torch.int32, device=device)


@pytest.mark.parametrize("block", BLOCKS)
def test_any_block_behind_any_offset(block, device):
    """Broken: some block, or an offset that is no multiple of it, is cut where no block ends, forward or backward."""
    q, k, v, grad, scale, starts = inputs_of(block, device)
    rows, new = k.shape[2], q.shape[2]
    assert new == rows or (rows - new) % block
    out, lse = landmark_forward(q, k, v, block, scale, starts)
    last = slice(max(0, new - 9), None)  # the definition is slow; the last rows see most
    expected, _ = definition.landmark_attention(q[:, :, last], k, v, block, scale, starts)
    torch.testing.assert_close(out[:, :, last].double().cpu(), expected, rtol=2e-4, atol=2e-5)
    found = landmark_backward(q, k, v, out, lse, grad, block, scale, starts)
    wide = GRADIENT.eager(*(part.double() for part in (q, k, v, grad)), block, scale, starts)
    for one, other in zip(found, wide, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(("block", "new"), [(16, 23), (17, 40), (50, 12)])
def test_packed_texts_behind_an_offset(block, new, device):
    """Broken: a text that begins before the first query, or among them, is cut by another text's blocks."""
    rows, dim = 2 * block + 21, 32
    torch.manual_seed(block)
    shapes = ((4, new), (2, rows), (2, rows), (4, new))
    q, k, v, grad = (torch.randn(2, n, length, dim, device=device) for n, length in shapes)
    # one text of the first sequence ends among the queries, one of the second with padding before the next
    begins = [[0, block // 2, rows - new // 2], [5, block + 8, rows - new + 3]]
    starts = torch.zeros(2, rows, dtype=torch.int32, device=device)
    for sequence, firsts in enumerate(begins):
        for first in firsts:
            starts[sequence, first - 2 * sequence :] = first
    wide = [part.double().requires_grad_() for part in (q, k, v)]
    wanted, _ = definition.landmark_attention(*wide, block, dim**-0.5, starts)
    gradients = torch.autograd.grad(wanted, wide, grad.double().cpu())
    out, lse = landmark_forward(q, k, v, block, dim**-0.5, starts)
    torch.testing.assert_close(out.double().cpu(), wanted.detach(), rtol=2e-4, atol=2e-5)
    for one, other in zip(landmark_backward(q, k, v, out, lse, grad, block, dim**-0.5, starts), gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-3, atol=2e-4)
