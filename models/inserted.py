"""Tokens that a method feeds beside the text: its caller sees the text's rows alone.

They stand behind the text's tokens of a call, whatever place they have in the text: attention goes by the method's own
positions, and every token is fed at position 0, so that keys and queries arrive before their rotation.

Shapes: B batch, H query heads, G key/value heads, T tokens of the text, M inserted ones, L = T + M, D head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .call import Call
from .ledger import Ledger
from .memory import Memory
from .rows import T

Attend = Callable[[Tensor, Memory, Call, Ledger], Tensor]


class Inserted(ABC):
    """What a method must say of its tokens."""

    @abstractmethod
    def plan(self, before_B: Tensor, after_B: Tensor) -> tuple[Tensor, Tensor]:
        """What to insert when a text grows from `before` to `after` tokens: numbers [B, M], and marks [B, M].

        A mark tells the method which token it is; -1 where a text has fewer than others.
        """

    @abstractmethod
    def write(self, memory: Memory, k_BGMD: Tensor, feed: Feed) -> None:
        """Put the inserted tokens' keys into the memory."""

    @abstractmethod
    def attend(self, q_BHLD: Tensor, memory: Memory, call: Call, ledger: Ledger, feed: Feed) -> Tensor:
        """Attention [B, H, L, D] of the text's T rows, which the ledger counts, and of the M inserted behind them."""


@dataclass
class Feed:
    """One call of a model, with inserted tokens or without.

    Attributes:
        kind: whose tokens they are; None: nobody's, and all is left as it is.
        text: tokens of the text, T.
        marks: [B, M] of the inserted ones.
        visible: [B, T, S] which tokens of the text its rows may see; None: causal.
    """

    kind: Inserted | None = None
    text: int = 0
    marks: Tensor = field(default_factory=partial(torch.empty, 0, 0, dtype=torch.long))
    visible: Tensor | None = None
    _known: dict[Hashable, Any] = field(default_factory=dict)

    @classmethod
    def into(cls, kind: Inserted | None, given: dict[str, Any], first_B: Tensor | None) -> Feed:
        """Change what a model is called with; its own mask is kept from being made.

        Raises:
            ValueError: it is called with embeddings in place of tokens.
        """
        if kind is None:
            return cls()
        ids, seen = given.get("input_ids"), given["past_key_values"].get_seq_length()
        if ids is None:
            raise ValueError("this method inserts tokens: call the model with input_ids")
        assert first_B is not None
        new = ids.shape[1]
        numbers, marks = kind.plan((seen - first_B).clamp(min=0), (seen + new - first_B).clamp(min=0))
        given["input_ids"] = torch.cat([ids, numbers], 1)
        given["position_ids"] = torch.zeros_like(given["input_ids"])
        given["attention_mask"] = ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
        return cls(kind, new, marks, _visible(first_B, seen, new))

    def strip(self, output: Any) -> Any:
        """The model's output without the inserted rows."""
        if self.kind is not None:
            output["last_hidden_state"] = output["last_hidden_state"][:, : self.text]
        return output

    def of_text(self, rows_BHTD: Tensor) -> Tensor:
        """The text's rows of a tensor."""
        return rows_BHTD if self.kind is None else rows_BHTD[:, :, : self.text]

    def mask(self, given: Tensor | None) -> Tensor | None:
        """[B, 1, T, S] which tokens of the text its rows may see."""
        if self.kind is None:
            return given
        return None if self.visible is None else self.visible[:, None]

    def write(self, memory: Memory, keys: Tensor) -> None:
        """Put the inserted tokens' keys into the memory."""
        if self.kind is not None:
            self.kind.write(memory, keys[:, :, self.text :], self)

    def attend(self, attend: Attend, query: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attention of all rows: the text's, and behind them the inserted ones."""
        if self.kind is None:
            return attend(query, memory, call, ledger)
        return self.kind.attend(query, memory, call, ledger, self)

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """What is the same in several layers is computed by the first of them."""
        if key not in self._known:
            self._known[key] = work()
        known: T = self._known[key]
        return known

    def instead(self, out: Tensor, text: Tensor) -> Tensor:
        """The same rows with other ones in place of the text's."""
        return text if self.kind is None else torch.cat([text, out[:, :, self.text :]], 2)


def _visible(first_B: Tensor, seen: int, new: int) -> Tensor | None:
    if not bool(first_B.any()):
        return None
    column = torch.arange(seen + new, device=first_B.device)
    causal = column <= column[seen:, None]
    return causal & (column >= first_B[:, None, None])
