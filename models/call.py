"""One call of attention as a method sees it: which rows ask, and what they may see.

Shapes: B batch, H query heads, T query rows, D head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .rows import Clock, T

Phase = Literal["prefill", "decode"]


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
        """What does not depend on the layer; computed once a step where the memory is pinned."""
        return work() if self.clock is None else self.clock.once(key, work)

    @functools.cached_property
    def numbers_T(self) -> Tensor:
        """Token numbers of the T query rows."""
        if self.clock is not None:
            return self.clock.row
        return self.seen + torch.arange(-self.new, 0, device=self.first.device)

    @functools.cached_property
    def context_BT(self) -> Tensor:
        """How many tokens dense attention would read for each row (padding rows: none)."""
        if self.clock is not None:
            return self.clock.context_BT
        return (self.numbers_T[None] - self.first[:, None] + 1).clamp(min=0)
