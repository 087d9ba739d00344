"""Budgets in rows of a head: from a share, a count or bytes, the same for every layer or one for each.

`keep` is a share of the rows there are (a method says which), rounded down, at least one. `rows` is a count. `bytes` is
what one layer may cost one text with all of its key/value heads on all ranks: an evicting method what it holds, a
selecting one what it reads for one query row, scores and bases included. A padded batch changes neither.

Shapes: B batch, T query rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ..results import rules
from .call import Call
from .memory import Memory, Site

Amount = float | Sequence[float] | None


class Budgeted(Protocol):
    """A method or task with the three words, of which exactly one is given."""

    @property
    def keep(self) -> Amount:
        """A share, or one for each layer."""

    @property
    def rows(self) -> Amount:
        """A count, or one for each layer."""

    @property
    def bytes(self) -> Amount:
        """Bytes, or those of each layer."""


@dataclass(frozen=True)
class Cost:
    """Bytes of a layer for one text and step, all real key/value heads of all ranks together.

    Attributes:
        row: of each row that a head chooses or holds.
        visible: of each row that a head may see, whether it is chosen or not.
        fixed: whatever is chosen.
    """

    row: float
    visible: float = 0.0
    fixed: float = 0.0


@dataclass(frozen=True)
class Allowance:
    """What a call may use by its method's arguments; None: no bound.

    Attributes:
        attended_BT: rows that a key/value head attends, in the mean over heads.
        held_B: rows that a key/value head holds after the call, in the mean over heads.
        read_bytes: bytes read for a query row, by all real heads of the layer.
        held_bytes: bytes held for a text after the call, by all real heads of the layer.
        over_layers: whether only the sum over all layers is bounded.
    """

    attended_BT: Tensor | None = None
    held_B: Tensor | None = None
    read_bytes: float | None = None
    held_bytes: float | None = None
    over_layers: bool = False


def share(amount: float, rows: Tensor) -> Tensor:
    """An int is a count of rows, a float a share of `rows` (rounded down, at least one)."""
    if isinstance(amount, int):
        return rows.clamp(max=amount)
    return (rows.double() * amount).long().clamp(min=1).minimum(rows)


def word_of(method: Budgeted) -> str:
    """Which of the words is given."""
    return next(word for word in rules.BUDGET if getattr(method, word) is not None)


def amount_of(method: Budgeted, site: Site) -> float:
    """The amount of one layer: a list's last holds for all layers that follow.

    Raises:
        ValueError: more amounts than layers.
    """
    word = word_of(method)
    given = getattr(method, word)
    if not isinstance(given, (list, tuple)):
        return float(given) if word == "keep" else int(given)
    if len(given) > site.layers:
        raise ValueError(f"{word} has amounts of {len(given)} layers, this model has {site.layers}: shorten the list")
    one = given[min(site.layer, len(given) - 1)]
    return float(one) if word == "keep" else int(one)


def in_rows(method: Budgeted, site: Site, base: Tensor, cost: Cost) -> Tensor:
    """Rows that the budget allows a head which has `base` rows, whatever the shape of that; int64."""
    amount = amount_of(method, site)
    if method.bytes is None:
        return share(amount, base)
    left = amount - cost.fixed - base.double() * cost.visible
    return (left / cost.row).floor().long().clamp(min=1).minimum(base)


def rows_once(method: Budgeted, memory: Memory, call: Call, cost: Cost) -> Tensor:
    """Rows that the budget allows a head for each query row, by its own causal length, [B, T]; once for all layers."""
    key = ("budget by context", word_of(method), amount_of(method, memory.site), cost)
    return call.once(key, lambda: in_rows(method, memory.site, call.context_BT, cost))


def widest(method: Budgeted, site: Site, base: int, cost: Cost) -> int:
    """The most rows that any head with `base` rows or fewer is allowed, known without asking the device."""
    amount = amount_of(method, site)
    if method.keep is not None:
        return min(max(1, int(base * amount)), base)
    if method.rows is not None:
        return min(int(amount), base)
    # in bytes, the budget falls with the rows there are: it is widest where both are equal
    return min(max(1, int((amount - cost.fixed) // (cost.row + cost.visible))), base)


def asks_for_gaps(method: Budgeted) -> bool:
    """Whether the budget is less than everything: a share of 1 in every layer is not."""
    given: Any = method.keep
    shares = given if isinstance(given, (list, tuple)) else [given]
    return any(one is None or one < 1 for one in shares)
