"""Rows of a cache, and the buffer that they lie in."""

import weakref

import pytest
import torch

from lacuna.kernels.op import watched
from lacuna.models.rows import Clock, Rows, keep_all


def test_a_row_of_several_tokens_is_held_from_its_first_token_on():
    """Boxes of pages would have room for as many pages as there are steps, or be charged before their page begins."""
    rows, clock = Rows(tokens=4), Clock(10, torch.zeros(1, dtype=torch.long))
    rows.append(torch.ones(1, 1, 3, 2))
    rows.pin(7, clock)
    assert rows.view.shape[2] == 5
    assert not rows.view[:, :, 3:].any()
    held = []
    for _ in range(7):
        clock.tick()
        held.append(int(rows.count))
    assert held == [3, 3, 4, 4, 4, 4, 5]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.reorder(torch.tensor([1, 0])),
        lambda rows: rows.repeat(2),
        lambda rows: rows.pin(999, Clock(3, torch.zeros(2, dtype=torch.long))),
    ],
)
def test_a_buffer_that_was_replaced_is_freed(change):
    """Beams that change places would hold every layer's cache twice until the next step."""
    rows = Rows()
    rows.append(torch.arange(24.0).view(2, 1, 3, 4))
    before = weakref.ref(rows.view)
    buffer = weakref.ref(rows._buffer)
    change(rows)
    assert before() is None
    assert buffer() is None


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_only_tensors_of_the_same_heads_and_rows_are_moved_together(twin):
    """A tensor beside the cache that has other heads, or room for fewer rows, would be refused, or moved by wrong strides."""
    shapes = [(2, 2, 9, 16), (2, 1, 9, 24), (2, 2, 9, 8), (2, 2, 7, 16), (2, 2, 9, 16), (2, 2, 9, 1)]
    drawn, parts, calls = [torch.randn(shape) for shape in shapes], [Rows() for _ in shapes], []
    for part, rows in zip(parts, drawn, strict=True):
        part.append(rows)

    def run(op, arguments, _twin):
        calls.append([tuple(one.shape[1:3]) for one in arguments[:3] if one is not None])
        return getattr(op, twin)(*arguments)

    with watched(run):
        keep_all(parts, torch.tensor([[[0, 3, 6]]]).expand(2, 1, 3))
    assert sorted(calls) == [[(1, 9)], [(2, 7)], [(2, 9)], [(2, 9)] * 3]
    for part, rows in zip(parts, drawn, strict=True):
        assert torch.equal(part.view, rows[:, :, [0, 3, 6]])
