"""Rows of a memory that lie in the host's memory until a query needs them: the device holds what it reads each time.

Shapes: B batch, G key/value heads, S rows on the host, T rows that come, R rows that are fetched, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


class HostRows:
    """Keys and values [B, G, S, D] on the host, the S rows right before the first one that the device holds.

    They lie in buffers that double when full, so that each row is moved a bounded number of times, however long the
    text: what is dropped at the front is overwritten when room is needed.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Hold these, which lie on the host and are this object's own from now on."""
        self._buffers = [keys, values]
        self._begin, self._end = 0, keys.shape[2]

    @property
    def count(self) -> int:
        """S."""
        return self._end - self._begin

    @property
    def keys(self) -> Tensor:
        """A view."""
        return self._buffers[0][:, :, self._begin : self._end]

    @property
    def values(self) -> Tensor:
        """A view."""
        return self._buffers[1][:, :, self._begin : self._end]

    @classmethod
    def grown(cls, before: HostRows | None, k_BGTD: Tensor, v_BGTD: Tensor, most: int) -> HostRows:
        """The rows that were there and these, the newest `most` of them; `before` is spent."""
        rows = before or cls(*(new[:, :, :0].to("cpu", copy=True) for new in (k_BGTD, v_BGTD)))
        rows.append(k_BGTD, v_BGTD, most)
        return rows

    def append(self, k_BGTD: Tensor, v_BGTD: Tensor, most: int) -> None:
        """Add rows behind the others, and drop the oldest but `most`."""
        new = k_BGTD.shape[2]
        self._begin = max(self._begin, min(self._end, self._end + new - most))
        if self._end + new > self._buffers[0].shape[2]:
            self._make_room(new)
        for buffer, rows in zip(self._buffers, (k_BGTD, v_BGTD), strict=True):
            buffer[:, :, self._end : self._end + new] = rows
        self._end += new
        self._begin = max(self._begin, self._end - most)

    def _make_room(self, new: int) -> None:
        """Move the rows to the front, into a larger buffer where they would fill more than half of this one."""
        size = self._buffers[0].shape[2]
        count, needed = self.count, self.count + new
        wider = max(size, 2 * needed)
        for i, old in enumerate((self.keys, self.values)):
            buffer = self._buffers[i]
            if wider != size:
                buffer = old.new_empty(*old.shape[:2], wider, old.shape[3])
            buffer[:, :, :count] = old  # what moves within a buffer does not overlap: it is less than half of it
            self._buffers[i] = buffer
        self._begin, self._end = 0, count

    def take(self, place_BR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, R, D] at these places, on the places' device; a place beyond has any."""
        where = place_BR.clamp(0, max(0, self.count - 1)).cpu()
        keys, values = (_picked(part, where).to(place_BR.device) for part in (self.keys, self.values))
        return keys, values

    def __getitem__(self, batch: Tensor) -> HostRows:
        """Those of some sequences, a copy."""
        chosen = batch.cpu()
        return HostRows(self.keys[chosen], self.values[chosen])


def _picked(rows_BGSD: Tensor, where_BR: Tensor) -> Tensor:
    """Rows [B, G, R, D], whole ones at once: an index over every element of them would copy one number at a time."""
    batch, groups, _, dim = rows_BGSD.shape
    found = rows_BGSD.new_empty(batch, groups, where_BR.shape[1], dim)
    for text, rows_GSD, where in zip(found, rows_BGSD, where_BR, strict=True):
        for head, rows in zip(text, rows_GSD, strict=True):
            torch.index_select(rows, 0, where, out=head)
    return found
