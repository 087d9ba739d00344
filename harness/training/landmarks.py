"""Landmark tokens put among a batch's tokens on the fly (Landmark Attention, arXiv 2305.16300, section 3).

Shapes: R rows, L tokens of a row before, T after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .segments import Floats, Ints


@dataclass(frozen=True)
class Batch:
    """One forward pass of training.

    Attributes:
        ids: [R, T] tokens.
        targets: [R, T] what follows each; after it comes a landmark, the token behind that.
        weights: [R, T] of each position in the loss; a landmark's own prediction has none.
        positions: [R, T] for the rotary embedding; None: 0, 1, 2, ...
        landmarks: [R, T] where landmarks stand; None: nowhere.
        controlled: [R, T] the landmarks that the control token at position 0 gates; None: there is no such token.
    """

    ids: Ints
    targets: Ints
    weights: Floats
    positions: Ints | None = None
    landmarks: NDArray[np.bool_] | None = None
    controlled: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Landmarks:
    """How landmarks are inserted.

    Attributes:
        token: the landmark's number; `control` that of the control token.
        block: a landmark after so many tokens.
        places: "fixed", or "random": as many landmarks at random places, no two side by side, none at the start.
        jump: after each landmark positions go on by a random number from 0 to this one more (section 4.2).
        controlled: share of landmarks that the control token gates (section 4.4); 0: there is none.
    """

    token: int
    control: int
    block: int
    places: Literal["fixed", "random"] = "fixed"
    jump: int = 0
    controlled: float = 0.0

    def check(self, length: int) -> None:
        """Refuse rows that do not end with a block.

        Raises:
            ValueError: the block does not divide the length.
        """
        if length % self.block:
            near = max(1, round(length / self.block)) * self.block
            raise ValueError(f"a landmark every {self.block} tokens does not divide a length of {length}: take {near}")

    def insert(self, batch: Batch, dice: np.random.Generator) -> Batch:
        """The batch with landmarks in it, T = L + L / block (and one more with a control token)."""
        rows, length = batch.ids.shape
        self.check(length)
        ends = self._ends(rows, length, dice)
        where = (np.arange(length) + 1)[None] + np.zeros((rows, 1), np.int64)
        is_end = np.zeros((rows, length + 1), bool)
        np.put_along_axis(is_end, ends, values=True, axis=1)
        before = np.cumsum(is_end, 1)[:, :length]  # landmarks before each token
        place = where - 1 + before
        total = length + ends.shape[1]
        marks = np.ones((rows, total), bool)
        np.put_along_axis(marks, place, values=False, axis=1)
        made = Batch(
            _spread(batch.ids, place, total, self.token),
            _spread(batch.targets, place, total, 0),
            _spread(batch.weights, place, total, 0.0),
            landmarks=marks,
        )
        return self._controlled(self._jumped(made, dice), dice)

    def _ends(self, rows: int, length: int, dice: np.random.Generator) -> Ints:
        """How many tokens stand before each landmark, [R, L / block]; ascending and different, from 1 on."""
        count = length // self.block
        if self.places == "fixed":
            return np.broadcast_to(np.arange(1, count + 1) * self.block, (rows, count))
        return np.sort(dice.random((rows, length)).argsort(1)[:, :count] + 1, 1)

    def _jumped(self, batch: Batch, dice: np.random.Generator) -> Batch:
        if not self.jump:
            return batch
        assert batch.landmarks is not None
        jumps = dice.integers(self.jump + 1, size=batch.ids.shape) * batch.landmarks
        before = np.cumsum(jumps, 1) - jumps  # a landmark itself stands where it would have
        return replace(batch, positions=np.arange(batch.ids.shape[1])[None] + before)

    def _controlled(self, batch: Batch, dice: np.random.Generator) -> Batch:
        if not self.controlled:
            return batch
        assert batch.landmarks is not None
        gated = batch.landmarks & (dice.random(batch.ids.shape) < self.controlled)
        positions = None if batch.positions is None else _behind(batch.positions + 1, 0)
        return Batch(
            _behind(batch.ids, self.control),
            _behind(batch.targets, 0),
            _behind(batch.weights, 0.0),
            positions,
            _behind(batch.landmarks, 0),
            _behind(gated, 0),
        )


def _spread(values: NDArray[Any], place: Ints, total: int, fill: float) -> NDArray[Any]:
    spread = np.full((len(values), total), fill, values.dtype)
    np.put_along_axis(spread, place, values, axis=1)
    return spread


def _behind(values: NDArray[Any], first: float) -> NDArray[Any]:
    return np.concatenate([np.full((len(values), 1), first, values.dtype), values], 1)
