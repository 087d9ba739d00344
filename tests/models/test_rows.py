"""Rows of a cache, and the buffer that they lie in."""

import weakref

import pytest
import torch

from lacuna.models.rows import Rows


@pytest.mark.parametrize("change", [lambda rows: rows.reorder(torch.tensor([1, 0])), lambda rows: rows.repeat(2)])
def test_a_buffer_that_was_replaced_is_freed(change):
    """Beams that change places would hold every layer's cache twice until the next step."""
    rows = Rows()
    rows.append(torch.arange(24.0).view(2, 1, 3, 4))
    before = weakref.ref(rows.view)
    buffer = weakref.ref(rows._buffer)
    change(rows)
    assert before() is None
    assert buffer() is None
