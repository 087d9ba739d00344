"""Rows of a memory that lie in the host's memory until a query needs them: the device holds what it reads each time.

Shapes: B batch, G key/value heads, S rows on the host, R rows that are fetched, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HostRows:
    """Keys and values [B, G, S, D] on the host, the S rows right before the first one that the device holds."""

    keys: Tensor
    values: Tensor

    @property
    def count(self) -> int:
        """S."""
        return self.keys.shape[2]

    @classmethod
    def grown(cls, before: HostRows | None, k_BGSD: Tensor, v_BGSD: Tensor, most: int) -> HostRows:
        """The rows that were there and these, the newest `most` of them."""
        old = (before.keys, before.values) if before else (k_BGSD[:, :, :0].cpu(), v_BGSD[:, :, :0].cpu())
        both = (torch.cat([was, new.cpu()], 2) for was, new in zip(old, (k_BGSD, v_BGSD), strict=True))
        keys, values = (rows[:, :, max(0, rows.shape[2] - most) :].clone() for rows in both)
        return cls(keys, values)

    def take(self, place_BR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, R, D] at these places, on the places' device; a place beyond has any."""
        where = place_BR.clamp(0, max(0, self.count - 1)).cpu()
        index = where[:, None, :, None].expand(-1, self.keys.shape[1], -1, self.keys.shape[3])
        return self.keys.gather(2, index).to(place_BR.device), self.values.gather(2, index).to(place_BR.device)

    def __getitem__(self, batch: Tensor) -> HostRows:
        """Those of some sequences."""
        chosen = batch.cpu()
        return HostRows(self.keys[chosen], self.values[chosen])
