"""Rows of text put together from segments of a pool: one gather for a whole batch, no loop over rows.

Shapes: R rows, K inserts of a row, N segments of an insert, L tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Pool:
    """Pieces of text that plants are made of, as tokens one after another."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer
        self._tokens: list[int] = []
        self.start: list[int] = []
        self.length: list[int] = []

    def add(self, *texts: str) -> Ints:
        """Encode pieces; returns their numbers."""
        first = len(self.start)
        for text in texts:
            ids = self._encode.encode(text, add_special_tokens=False).ids
            self.start.append(len(self._tokens))
            self.length.append(len(ids))
            self._tokens += ids
        return np.arange(first, len(self.start))

    @property
    def tokens(self) -> Ints:
        """All pieces' tokens."""
        return np.array(self._tokens, np.int64)


@dataclass(frozen=True)
class Inserts:
    """What is put into rows.

    Attributes:
        start: [R, K, N] where each segment begins in the pool's tokens; negative: -1 - (place in the row's own hay).
        length: [R, K, N]; 0 for no segment.
        weight: [R, K, N] of the segment's tokens in the loss.
        at: [R, K] where the insert stands, as a share of the row's hay.
    """

    start: Ints
    length: Ints
    weight: Floats
    at: NDArray[np.float64]


def insert(hay_RL: Ints, inserts: Inserts, pool: Ints, weight_R: Floats) -> tuple[Ints, Floats]:
    """Tokens and weights, both [R, L]: hay, of which each token weighs `weight_R`, with the inserts in it.

    The hay is cut so that rows stay as long as they were.

    Raises:
        ValueError: the inserts of a row are longer than the row.
    """
    rows, length = hay_RL.shape
    room = length - inserts.length.sum((1, 2))
    if room.min() < 0:
        taken = length - room.min()
        raise ValueError(
            f"what is planted takes {taken} tokens of a row of {length}: use longer rows, or another `mix`"
        )
    order = inserts.at.argsort(1, kind="stable")
    cut = np.floor(np.take_along_axis(inserts.at, order, 1) * room[:, None]).astype(np.int64)
    edges = np.concatenate([np.zeros((rows, 1), np.int64), cut, room[:, None]], 1)
    base = pool.size + np.arange(rows)[:, None] * length  # the hay lies behind the pool, row after row
    picked = [np.take_along_axis(part, order[:, :, None], 1) for part in (inserts.start, inserts.length)]
    start = np.where(picked[0] < 0, base[:, :, None] - 1 - picked[0], picked[0])
    weight = np.take_along_axis(inserts.weight, order[:, :, None], 1)
    starts = _between(base + edges[:, :-1], start)
    lengths = _between(np.diff(edges, axis=1), picked[1])
    weights = _between(np.broadcast_to(weight_R[:, None], edges[:, 1:].shape), weight)
    index = _ragged(starts, lengths)
    whole = np.concatenate([pool, hay_RL.ravel()])
    return whole[index].reshape(rows, length), np.repeat(weights, lengths).reshape(rows, length)


def _between(hay: NDArray[Any], segments: NDArray[Any]) -> NDArray[Any]:
    """In reading order: a stretch of hay, the segments of an insert, ..., the last stretch of hay; flat."""
    rows = len(hay)
    inner = np.concatenate([hay[:, :-1, None], segments], 2).reshape(rows, -1)
    return np.concatenate([inner, hay[:, -1:]], 1).ravel()


def _ragged(starts: Ints, lengths: Ints) -> Ints:
    """start, start + 1, ..., start + length - 1 of each segment, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
