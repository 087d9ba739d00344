"""StreamingLLM: attention sinks and a sliding window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...results.fields import Within
from .. import attend
from ..ledger import Ledger
from ..memory import Call, Memory
from ..method import Method


@dataclass(frozen=True)
class StreamingLlm(Method):
    """The first `sinks` tokens and the last `window` are kept; everything between is dropped.

    Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453). A row attends sinks + window rows,
    itself included; so many are held. Prompt rows attend everything when the prefill is dense; then the prompt is cut.

    Arguments: `positions: cache` (paper) counts positions inside the cache, so that the sinks stay close however long
    the text; `positions: text` keeps the original ones. `decode: slide` (paper) drops a row for each new one; `decode:
    grow` drops only once, at the end of the prompt, as KVCache-Factory does (with `positions: text`).
    """

    sinks: Annotated[int, Within(0)] = 4
    window: Annotated[int, Within(1)] = 1020
    positions: Literal["cache", "text"] = "cache"
    decode: Literal["slide", "grow"] = "slide"
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        if self.decode == "grow" and self.positions == "cache":
            raise ValueError("streaming_llm with decode: grow keeps the text's positions: set positions: text")

    @property
    def budget(self) -> int:
        """Rows held and attended."""
        return self.sinks + self.window

    def room(self, memory: Memory, steps: int) -> int:
        """None once the window is full; `grow` adds a row a step."""
        if memory.columns is None:
            raise ValueError(
                f"streaming_llm is captured with a full window: the prompt needs over {self.budget} tokens"
            )
        return steps if self.decode == "grow" else 0

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append; a single row overwrites the oldest of a full window, or padding."""
        full = memory.columns is not None and memory.keys.view.shape[2] >= self.budget
        if k_BGTD.shape[2] == 1 and full and self.decode == "slide":
            memory.replace(self._slot(memory), k_BGTD, v_BGTD)
        else:
            memory.append(k_BGTD, v_BGTD)

    def _slot(self, memory: Memory) -> Tensor:
        """The row to give up, [B]: the last padding row if there is one, else the oldest that is no sink."""
        place = self._place(memory)
        column = torch.arange(place.shape[1], device=place.device)
        worth = torch.where(place < 0, column + memory.seen, -place)
        return worth.masked_fill((place >= 0) & (place < self.sinks), -memory.seen - 1).argmax(-1)

    def _place(self, memory: Memory) -> Tensor:
        """Place of each row held in its own text, [B, S]; negative for padding."""
        assert memory.first is not None
        return memory.numbers_BS(memory.keys.view.shape[0]) - memory.first[:, None]

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend sinks and window of each row."""
        keep = self._keep(memory, call)
        groups = memory.keys.view.shape[1]
        ledger.count(memory, call, keep.sum(-1)[:, None].expand(-1, groups, -1), 0.0)
        if self.positions == "text":
            return self._attend(q_BHTD, memory, keep, call)
        return self._attend_in_cache(q_BHTD, memory, keep, call)

    def _keep(self, memory: Memory, call: Call) -> Tensor:
        visible, place = attend.visible_BTS(memory, call), self._place(memory)[:, None]
        if self.decode == "grow":
            return visible & (place >= 0)
        row = (call.numbers_T - call.first[:, None])[..., None]
        return visible & (place >= 0) & ((place < self.sinks) | (place > row - self.window))

    def _attend(self, q_BHTD: Tensor, memory: Memory, keep_BTS: Tensor, call: Call) -> Tensor:
        if call.new == 1 and memory.columns is not None and self.decode == "slide":
            return attend.dense(q_BHTD, memory, call)  # all that is held is attended
        return attend.masked(q_BHTD, memory, keep_BTS[:, None], call)

    def _attend_in_cache(self, q_BHTD: Tensor, memory: Memory, keep_BTS: Tensor, call: Call) -> Tensor:
        """Only the distance to the sinks differs from the text's: it shrinks by the number of rows dropped."""
        dropped = (call.context_BT - self.budget).clamp(min=0)
        where = self._sink_rows(memory)
        if call.new == 1 and memory.columns is not None:
            self._turn_sinks(memory, where, dropped)
            return attend.dense(q_BHTD, memory, call)
        self._restore_sinks(memory, where)
        near = memory.site.rotate(q_BHTD, -dropped)
        is_sink = (self._place(memory) >= 0) & (self._place(memory) < self.sinks)
        return attend.masked_two(q_BHTD, near, is_sink, memory, keep_BTS, call)

    def _sink_rows(self, memory: Memory) -> Tensor:
        """Rows of the sinks, [B, sinks]; of a text shorter than that, any row for what is missing."""
        wanted = torch.arange(self.sinks, device=memory.keys.view.device)[:, None]
        return (self._place(memory)[:, None] == wanted).int().argmax(-1)

    def _turn_sinks(self, memory: Memory, rows_BK: Tensor, dropped_B1: Tensor) -> None:
        """Write the sinks' keys turned forward, always from the original ones, so that rounding never adds up."""
        if not self.sinks:
            return
        keys, dropped = memory.keys.view, dropped_B1[:, :, None, None]
        now = keys.gather(2, rows_BK[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))
        # up to a text's first dropped row its sinks still lie here unturned, and may still be arriving
        kept = torch.where(dropped <= 1, now, memory.extra.get("sinks", now))
        memory.extra["sinks"] = kept
        turned = memory.site.rotate(kept, dropped_B1.expand_as(rows_BK))
        memory.keys.put(rows_BK, torch.where(dropped > 0, turned, now))

    def _restore_sinks(self, memory: Memory, rows_BK: Tensor) -> None:
        if "sinks" in memory.extra:
            memory.keys.put(rows_BK, memory.extra["sinks"])

    def settle(self, memory: Memory, call: Call) -> None:
        """Cut what the next row will not attend; a ring is full already."""
        if self.decode == "grow" and call.phase == "decode":
            return
        extra = memory.keys.view.shape[2] - self.budget
        if extra > 0:
            place = self._place(memory)
            last = (memory.seen - call.first)[:, None] - self.window
            wanted = (place >= last) | ((place >= 0) & (place < self.sinks))
            worth = wanted * memory.seen + torch.arange(place.shape[1], device=place.device)
            memory.keep(worth.topk(self.budget, -1).indices.sort(-1).values[:, None])
