"""One call of attention as a method sees it: which rows ask, and what they may see.

Shapes: B batch, H query heads, T query rows, D head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .rows import Clock, T

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Extent:
    """Which tokens T query rows are, and how many they may see.

    Attributes:
        first: [B] number of the first token that is no padding.
        numbers_T: token numbers of the rows.
        context_BT: tokens that dense attention would read for each row; none for padding rows.
    """

    first: Tensor
    numbers_T: Tensor
    context_BT: Tensor

    @functools.cached_property
    def text_BT(self) -> Tensor:
        """Which rows are text and no padding."""
        return self.context_BT > 0

    @functools.cached_property
    def arrived_BT(self) -> Tensor:
        """How many rows of text have come with each row."""
        return self.text_BT.cumsum(-1)

    @functools.cached_property
    def real_BT(self) -> Tensor:
        """1 for text, 0 for padding; float64."""
        return self.text_BT.double()

    @functools.cached_property
    def rows(self) -> Tensor:
        """Rows of text of the whole batch; float64."""
        return self.real_BT.sum()

    @functools.cached_property
    def visible(self) -> Tensor:
        """Tokens that they may see together; float64."""
        return self.context_BT.double().sum()


@dataclass(frozen=True)
class Call:
    """One call of attention, as a method sees it.

    Attributes:
        visible: [B, T, seen] which tokens a causal model with this padding may see; None: plainly causal.
        first: [B] number of the first token that is no padding.
        phase: prefill (the prompt, at once) or decode (rows that the method acts on, T at once or one by one).
        scale: factor of q.k before the softmax.
        seen: tokens so far, these T included.
        new: T.
        query: [B, H, T, D], for methods that evict by it.
        clock: the memory's, if pinned.
        group: query heads of a key/value head.
        shared: what all layers of one pass share.
        causal: `visible` says no more than that rows see what is before them, but for padding at the left.
        query_in: in whose coordinates a step's query is.
    """

    visible: Tensor | None
    first: Tensor
    phase: Phase
    scale: float
    seen: int | Tensor
    new: int
    query: Tensor | None = None
    clock: Clock | None = None
    group: int = 1
    shared: dict[Hashable, Any] = field(default_factory=dict)
    causal: bool = False
    query_in: Literal["model", "memory"] = "model"

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """What does not depend on the layer but through its key: computed by the first layer that these rows reach."""
        if self.clock is not None:
            return self.clock.once(key, work)
        place = ("once", key, self.seen, self.new)
        known: tuple[Tensor, T] | None = self.shared.get(place)
        if known is None or known[0] is not self.first:
            known = self.shared[place] = (self.first, work())
        return known[1]

    def in_pass(self, key: Hashable, work: Callable[[], T]) -> T:
        """What depends on nothing but its key, the method and the rows of the pass; once for all its layers."""
        if self.clock is not None:
            return self.clock.once(key, work)
        if key not in self.shared:
            self.shared[key] = work()
        known: T = self.shared[key]
        return known

    def root_scaled(self, x_BnTD: Tensor) -> Tensor:
        """Rows times the square root of `scale`, float32, contiguous: queries and keys so scaled give scaled scores."""
        device = x_BnTD.device
        root = self.in_pass(("root", self.scale, device), lambda: torch.full((1,), self.scale**0.5, device=device))
        out = torch.empty(x_BnTD.shape, dtype=torch.float32, device=x_BnTD.device)
        return torch.mul(x_BnTD, root, out=out)

    @property
    def extent(self) -> Extent:
        """What the rows are, whatever attends them: the same in all layers."""
        if self.clock is not None:
            return self.clock.once("extent", self._extent)
        known: Extent | None = self.shared.get(self._place)
        if known is None or known.first is not self.first:
            known = self.shared[self._place] = self._extent()
        return known

    def told(self, extent: Extent) -> Call:
        """The same call, whose extent is known and not worked out; it shares nothing else. Of none that has a clock."""
        assert self.clock is None, "a clock knows the extent"
        return replace(self, first=extent.first, shared={self._place: extent})

    @property
    def _place(self) -> Hashable:
        return "extent", self.seen, self.new

    def _extent(self) -> Extent:
        if self.clock is not None:
            return Extent(self.first, self.clock.row, self.clock.context_BT)
        numbers_T = self.seen + torch.arange(-self.new, 0, device=self.first.device)
        return Extent(self.first, numbers_T, (numbers_T[None] - self.first[:, None] + 1).clamp(min=0))

    @property
    def numbers_T(self) -> Tensor:
        """Token numbers of the T query rows."""
        return self.extent.numbers_T

    @property
    def context_BT(self) -> Tensor:
        """How many tokens dense attention would read for each row (padding rows: none)."""
        return self.extent.context_BT
