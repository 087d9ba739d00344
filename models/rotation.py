"""Keys turned by a model's own rotary embedding, whatever its kind.

Shapes: B batch, n heads, T rows, K turns of each row, X = n or 1, P positions, D head dimension, R turned dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels.put_turned import OP as PUT_TURNED
from ..kernels.turn_rows import OP as TURN_ROWS

RESCALED = ("dynamic", "longrope")  # their frequencies change with length: turning a key again is not a rotation
Apply = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Turn:
    """Turns rows by positions that are known: what depends on these alone is computed once."""

    cos_BTR: Tensor
    sin_BTR: Tensor
    apply: Apply

    def __call__(self, x_BnTD: Tensor) -> Tensor:
        """The rows, turned in float32."""
        if pairs_halves(self.apply):
            cos, sin = (part.expand(x_BnTD.shape[0], -1, -1).flatten(0, 1) for part in (self.cos_BTR, self.sin_BTR))
            turned: Tensor = TURN_ROWS(_rows_together(x_BnTD), cos, sin)[:, :, :, 0]
            return turned
        x = x_BnTD.float()
        nothing = x[:, :0]  # in place of keys
        return self.apply(x, nothing, self.cos_BTR, self.sin_BTR)[0].to(x_BnTD.dtype)

    def put(self, x_BnTD: Tensor, place_BT: Tensor, cache_BnSD: Tensor) -> None:
        """Write the rows, turned in float32, over rows of a cache; -1: nowhere. No two of a text go to the same."""
        if pairs_halves(self.apply):
            PUT_TURNED(_rows_together(x_BnTD), self.cos_BTR, self.sin_BTR, place_BT, cache_BnSD)
            return
        turned = self(x_BnTD)
        for row in range(place_BT.shape[1]):  # one by one: what goes nowhere writes back what it finds
            place = place_BT[:, row, None, None, None]
            index = place.clamp(min=0).expand(-1, cache_BnSD.shape[1], 1, cache_BnSD.shape[3])
            new = torch.where(place >= 0, turned[:, :, row, None], cache_BnSD.gather(2, index))
            cache_BnSD.scatter_(2, index, new)


@dataclass(frozen=True)
class Turns:
    """Turns rows by any positions of an interval."""

    cos_PR: Tensor
    sin_PR: Tensor
    apply: Apply

    def __call__(self, x_BnTD: Tensor, row_BXTK: Tensor) -> Tensor:
        """Each row turned by K positions, counted from the interval's first, [B, n, T, K, D]; in float32."""
        if pairs_halves(self.apply):
            turned: Tensor = TURN_ROWS(_rows_together(x_BnTD), self.cos_PR, self.sin_PR, row_BXTK)
            return turned
        batch, heads, rows, dim = x_BnTD.shape
        sets, turns = row_BXTK.shape[1], row_BXTK.shape[3]
        many = x_BnTD.repeat_interleave(turns, 2).view(batch, heads // sets, sets * rows * turns, dim)
        row = row_BXTK.flatten(1)
        turn = Turn(self.cos_PR[row], self.sin_PR[row], self.apply)
        return turn(many).view(batch, heads, rows, turns, dim)


class Turning(Protocol):
    """What turns rows by any number of positions; negative ones turn back."""

    def __call__(self, x_BnTD: Tensor, by_BT: Tensor, /) -> Tensor:
        """Turn rows by some positions."""

    def by(self, by_BT: Tensor, /) -> Turn:
        """The turn by some positions, for rows of several layers."""

    def between(self, low: int, high: int, like: Tensor, /) -> Callable[[Tensor, Tensor], Tensor]:
        """Turns by any positions of [low, high), counted from low, each row by several; on the device of a tensor."""


@dataclass(frozen=True)
class _Table:
    """Angles of the positions from `low` on."""

    low: int
    all: Turns

    @property
    def high(self) -> int:
        return self.low + self.all.cos_PR.shape[0]

    def between(self, low: int, high: int) -> Turns:
        """Those of [low, high), a view."""
        part = slice(low - self.low, high - self.low)
        return Turns(self.all.cos_PR[part], self.all.sin_PR[part], self.all.apply)


class Rotation:
    """The model's own rotary embedding, as a turn by any number of positions (negative: back).

    All layers and caches of a binding share one. A table that was outgrown is kept, since a CUDA graph may go on to
    read it; each is at least twice as long as the one before, so that the last is half of them all or more.
    """

    def __init__(self, model: Any) -> None:
        base = model.base_model
        self._embedding = getattr(base, "rotary_emb", None)
        self._apply = getattr(sys.modules[type(base).__module__], "apply_rotary_pos_emb", None)
        self._tables: dict[torch.device, list[_Table]] = {}

    def __call__(self, x_BnTD: Tensor, by_BT: Tensor) -> Tensor:
        """Turn rows by some positions; negative ones turn back.

        Raises:
            ValueError: the model has no rotary embedding, or one whose frequencies change with length.
        """
        return self.by(by_BT)(x_BnTD)

    def by(self, by_BT: Tensor) -> Turn:
        """The turn by some positions.

        Raises:
            ValueError: the model has no rotary embedding, or one whose frequencies change with length.
        """
        if self._embedding is None or self._apply is None:
            raise ValueError("this model has no rotary embedding that a method could turn keys with")
        if getattr(self._embedding, "rope_type", "default") in RESCALED:
            raise ValueError(f"rotary embeddings of type {self._embedding.rope_type} cannot be turned after the fact")
        cos, sin = self._embedding(by_BT.float(), by_BT)  # its first argument says dtype and device
        size = self._embedding.attention_scaling  # belongs to the first rotation only
        return Turn(cos, sin, self._apply) if size == 1 else Turn(cos / size, sin / size, self._apply)

    def between(self, low: int, high: int, like: Tensor) -> Turns:
        """Turns by any positions of [low, high), counted from low; on the device of `like`.

        Raises:
            ValueError: the model has no rotary embedding, or one whose frequencies change with length.
        """
        tables = self._tables.setdefault(like.device, [])
        if tables and tables[-1].low <= low and high <= tables[-1].high:
            return tables[-1].between(low, high)
        if like.is_cuda and torch.cuda.is_current_stream_capturing():
            return self._table(low, high, like.device).all  # the graph's own, which holds nothing before it is replayed
        tables.append(
            self._wider(tables[-1], low, high, like.device) if tables else self._table(low, high, like.device)
        )
        return tables[-1].between(low, high)

    def _wider(self, before: _Table, low: int, high: int, device: torch.device) -> _Table:
        """A table of these positions as well, at least twice as long."""
        low, high = min(low, before.low), max(high, before.high)
        more = max(0, 2 * (before.high - before.low) - (high - low))
        return self._table(low - more, high, device) if high == before.high else self._table(low, high + more, device)

    def _table(self, low: int, high: int, device: torch.device) -> _Table:
        turn = self.by(torch.arange(low, high, device=device)[None])
        return _Table(low, Turns(turn.cos_BTR[0], turn.sin_BTR[0], turn.apply))


@cache
def pairs_halves(apply: Apply) -> bool:
    """Whether a model turns the pairs (i, i + R/2) by angles of R dims, as most do and the op `turn_rows` does.

    Others pair neighbours, or have angles of half the width.
    """
    half = torch.tensor([[0.3, -1.1, 2.0]], dtype=torch.float32)
    cos, sin = (part.repeat(1, 2) for part in (half.cos(), half.sin()))
    x = torch.arange(1, 7, dtype=torch.float32).view(1, 1, 1, 6)
    try:
        found = apply(x, x[:, :0], cos[None], sin[None])[0]
    except RuntimeError:  # shapes that do not fit
        return False
    return torch.equal(found, TURN_ROWS.eager(x, cos, sin)[:, :, :, 0])


def _rows_together(x_BnTD: Tensor) -> Tensor:
    return x_BnTD if x_BnTD.stride(-1) == 1 else x_BnTD.contiguous()
