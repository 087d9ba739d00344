"""StreamingLLM: attention sinks and a sliding window."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from .. import attend, lifetime, many
from ..budget import Allowance, Cost, amount_of, asks_for_gaps, widest, word_of
from ..call import Call
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory
from ..method import Method
from ..sliding import SINKS, Sinks, Step, given_up, slot_of
from ..stepwise import sliding_rows_BT
from ..window import Window, window_of

ALL_SINKS = "all_sinks"


@dataclass(frozen=True)
class StreamingLlm(Method):
    """The first `sinks` tokens and the last ones of the budget are kept; everything between is dropped.

    Efficient Streaming Language Models with Attention Sinks (arXiv 2309.17453). A row attends as many rows as the
    budget has, itself included; so many are held. Prompt rows attend everything when the prefill is dense; then the
    prompt is cut. With the paper's positions the sinks' keys are held twice, turned and not, and charged so.

    Arguments: `keep` a share of the prompt (of the row's own causal length where nothing was prefilled, and then of the
    sinks and a row at least), `rows` of each head (the paper: 1024), or `bytes` that a layer holds, `sinks` (the paper:
    4) among them; a budget that is smaller has fewer sinks, and its last row. `positions: cache` (paper) counts
    positions inside the cache, so that the sinks stay close however long the text; `positions: text` keeps the original
    ones. `decode: slide` (paper) drops a row for each new one; `decode: grow` drops only once, at the end of the
    prompt, as KVCache-Factory does (with `positions: text`; its needle runner has rows - 32 sinks).
    """

    keep: Keep = None
    rows: RowCount = 1024
    bytes: ByteCount = None
    sinks: Annotated[int, Within(0)] = 4
    positions: Literal["cache", "text"] = "cache"
    decode: Literal["slide", "grow"] = "slide"
    version: ClassVar[int] = 4
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        rules.rows_above(self, self.sinks, f"leaves no window beside {self.sinks} sinks")
        grows_in_cache = self.decode == "grow" and self.positions == "cache"
        rules.refuse(self, when=grows_in_cache, why="decode: grow keeps the text's positions: set positions: text")

    def cost(self, memory: Memory, call: Call | None = None) -> Cost:
        """Bytes held: rows, and the sinks' keys as they came."""
        del call
        heads, key = memory.site.kv_heads_real, memory.keys.row_bytes
        twice = self.sinks * key * heads if self.positions == "cache" else 0
        return Cost((key + memory.values.row_bytes) * heads, fixed=twice)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget; what was decoded comes on top where the cache grows."""
        more = int(memory.seen) - memory.prompt_seen if self.decode == "grow" else 0
        if word_of(self) == "bytes":
            return Allowance(held_bytes=amount_of(self, memory.site) + more * self.cost(memory).row)
        if self.decode == "grow" and memory.prompt is None:
            return Allowance()
        rows = self._rows_BT(memory, call)
        if self.decode == "slide":
            return Allowance(attended_BT=rows, held_B=rows[:, -1])
        assert memory.prompt is not None
        since = call.context_BT - memory.prompt[:, None]
        return Allowance(rows + since if call.phase == "decode" else None, rows[:, -1] + more)

    def expects_gaps(self) -> bool:
        """A window that slides leaves gaps in the end; a prompt kept whole does not."""
        return self.decode == "slide" or asks_for_gaps(self)

    def room(self, memory: Memory, steps: int) -> int:
        """None once the window is full; `grow` adds a row a step.

        Raises:
            ValueError: the window is not full, or grows with the text.
        """
        if self.decode == "grow":
            return steps
        if self.keep is not None and memory.prompt is None:
            raise ValueError("streaming_llm with keep is captured after a prompt: without one the window grows")
        if memory.columns is None:
            told = f"{word_of(self)} = {amount_of(self, memory.site)}"
            raise ValueError(f"streaming_llm is captured with a full window: the prompt must be longer than {told}")
        return 0

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append; a single row overwrites the oldest of a full window, or padding."""
        if not self._knows_sinks(memory):
            self._remember_sinks(memory, k_BGTD)
        slides = k_BGTD.shape[2] == 1 and self.decode == "slide" and memory.columns is not None
        if slides and memory.clock is not None:
            memory.put(self._give_up(memory), k_BGTD, v_BGTD)
        elif slides and self._is_full(memory):
            memory.replace(self._slot(memory), k_BGTD, v_BGTD)
        else:
            memory.append(k_BGTD, v_BGTD)

    def landing(self, memory: Memory) -> Landing | None:
        """Over the row that a full window gives up; sinks that are yet to come are remembered by `write`."""
        if not self._knows_sinks(memory):
            return None
        plain = Landing.plain(memory)
        return plain if self.decode == "grow" else replace(plain, over=partial(self._give_up, memory))

    def _knows_sinks(self, memory: Memory) -> bool:
        return self.positions == "text" or not self.sinks or ALL_SINKS in memory.given

    def _remember_sinks(self, memory: Memory, k_BGTD: Tensor) -> None:
        """Keep the sinks' keys as they come, so that turning them never adds up rounding."""
        assert memory.first is not None
        groups, new, dim = k_BGTD.shape[1:]
        at = memory.first[:, None] + torch.arange(self.sinks, device=k_BGTD.device) - memory.seen
        found = k_BGTD.gather(2, at.clamp(0, new - 1)[:, None, :, None].expand(-1, groups, -1, dim))
        before = memory.extra.get(SINKS, found)
        memory.extra[SINKS] = torch.where(((at >= 0) & (at < new))[:, None, :, None], found, before)

    def _is_full(self, memory: Memory) -> bool:
        # without a prompt a share grows: rows are appended, and cut
        grows = memory.prompt is None or memory.allowed is None
        most = int(memory.seen) + 1 if grows or memory.allowed is None else int(memory.allowed.max())
        return memory.keys.view.shape[2] >= self._full(memory, most)

    def _full(self, memory: Memory, share: int) -> int:
        """Rows of a full text, where the host knows; of a share what is given."""
        return share if self.keep is not None else widest(self, memory.site, int(memory.seen), self.cost(memory))

    def _slot(self, memory: Memory) -> Tensor:
        """The row to give up, [B]."""
        place = self._place(memory)
        budget = memory.allowed if self.keep is not None else torch.full_like(place[:, 0], place.shape[1])
        assert budget is not None
        return slot_of(place, budget, self.sinks, memory.seen)

    def _give_up(self, memory: Memory) -> Tensor:
        """The row that a step writes over, [B], with its new number."""
        assert memory.clock is not None
        key = self._place_of("slot", memory)
        slot, memory.columns = memory.clock.once(key, lambda: given_up(memory, self._slot(memory)))
        return slot

    def _place(self, memory: Memory) -> Tensor:
        """Place of each row held in its own text, [B, S]; negative for padding and holes."""
        assert memory.first is not None
        return memory.numbers_BS(memory.keys.view.shape[0]) - memory.first[:, None]

    def _rows_BT(self, memory: Memory, call: Call) -> Tensor:
        rows = sliding_rows_BT(self, memory, call, self.cost(memory))
        if self.keep is None or memory.prompt is not None or call.phase == "prefill":
            return rows
        # a share that grows would begin without room for the sinks, and what was dropped does not come back
        return torch.maximum(rows, call.context_BT.clamp(max=self.sinks + 1))

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend sinks and window of each row; a single row drops first what it will not attend."""
        if memory.clock is not None and self.decode == "slide" and ledger.watch is None:
            step = call.once(self._place_of("step", memory), lambda: self._step(memory, call))
            return step.attend(q_BHTD, memory, call, ledger)
        alone = call.new == 1 and self.decode == "slide"
        if alone:
            self._cut(memory, call)
        if ledger.watch is None and self.decode == "grow":
            return self.attend_dense(q_BHTD, memory, call, ledger)  # everything that is held
        if ledger.watch is None and self._fits(q_BHTD, memory, call):
            return self._many(q_BHTD, memory, call, ledger)
        keep = self._keep(memory, call)
        ledger.chosen(memory, call, q_BHTD, keep[:, None])
        groups = memory.keys.view.shape[1]
        ledger.count(memory, call, keep.sum(-1)[:, None].expand(-1, groups, -1), 0.0)
        if self.positions == "cache":
            return self._attend_in_cache(q_BHTD, memory, keep, call)
        if alone and memory.columns is not None:
            return attend.dense(q_BHTD, memory, call)
        return attend.masked(q_BHTD, memory, keep[:, None], call)

    def _fits(self, q_BHTD: Tensor, memory: Memory, call: Call) -> bool:
        """Whether each row held is attended up to some query row: budgets are equal, or those of rows that see all."""
        if self.decode == "grow" or not many.fits_hidden(q_BHTD, call):
            return False
        return call.once(self._place_of("fits", memory), lambda: self._is_window(memory, call))

    def _is_window(self, memory: Memory, call: Call) -> bool:
        budget = self._rows_BT(memory, call)
        return bool(((budget == budget[:, -1:]) | (call.context_BT <= budget)).all())

    def _place_of(self, what: str, memory: Memory) -> Hashable:
        """Where the layers of one budget, which hold the same rows, leave something for each other."""
        return (what, amount_of(self, memory.site), self.cost(memory), memory.keys.view.shape[2])

    def _many(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The window through a kernel; sinks that stand elsewhere for each row are merged with it."""
        window = call.once(self._place_of("window", memory), lambda: self._window(memory, call))
        groups = memory.keys.view.shape[1]
        ledger.count(memory, call, window.read.expand(-1, groups, -1), 0.0)
        out, lse = lifetime.attend_held(q_BHTD, memory, window.until, call.scale)
        if not self.sinks:
            return out.to(q_BHTD.dtype)
        values, keys = (
            part.gather(2, window.sinks.expand(-1, groups, -1, part.shape[3]))
            for part in (memory.values.view, memory.keys.view)
        )
        near = q_BHTD
        if window.near is not None:
            near, keys = window.near(q_BHTD), memory.extra[SINKS]
        scores = attend.group_scores(near, keys, "none") * call.scale
        return lifetime.beside(out, lse, scores.masked_fill(window.hidden, -torch.inf), values).to(q_BHTD.dtype)

    def _window(self, memory: Memory, call: Call) -> Window:
        budget, turn = self._rows_BT(memory, call)[:, -1:], memory.site.rotate.by
        return window_of(self._place(memory), budget, self.sinks, call, turn if self.positions == "cache" else None)

    def _keep(self, memory: Memory, call: Call) -> Tensor:
        visible, place = attend.visible_BTS(memory, call), self._place(memory)[:, None]
        if self.decode == "grow":
            return visible & (place >= 0)
        budget = self._rows_BT(memory, call)[..., None]
        sinks = (budget - 1).clamp(max=self.sinks)
        row = (call.numbers_T - call.first[:, None])[..., None]
        return visible & (place >= 0) & ((place < sinks) | (place > row - (budget - sinks)))

    def _attend_in_cache(self, q_BHTD: Tensor, memory: Memory, keep_BTS: Tensor, call: Call) -> Tensor:
        """Only the distance to the sinks differs from the text's: it shrinks by the number of rows dropped."""
        budget = self._rows_BT(memory, call)
        dropped, sinks = (call.context_BT - budget).clamp(min=0), (budget - 1).clamp(0, self.sinks)
        alone = call.new == 1 and memory.columns is not None
        if self.sinks:
            self._sinks(memory, sinks[:, -1:], dropped if alone else torch.zeros_like(dropped[:, :1])).put(memory)
        if alone:
            return attend.dense(q_BHTD, memory, call)
        near = memory.site.rotate(q_BHTD, -dropped)
        place = self._place(memory)[:, None]
        return attend.masked_two(q_BHTD, near, (place >= 0) & (place < sinks[..., None]), memory, keep_BTS, call)

    def _sinks(self, memory: Memory, held_B1: Tensor, by_B1: Tensor) -> Sinks:
        return Sinks.of(self._place(memory), held_B1, by_B1, self.sinks, memory.site.rotate)

    def _step(self, memory: Memory, call: Call) -> Step:
        """What a single row attends in a full window, and how far its sinks are turned."""
        sinks, read = None, self._keep(memory, call).sum(-1)[:, None]
        if self.positions == "cache" and self.sinks:
            budget = self._rows_BT(memory, call)
            sinks = self._sinks(memory, budget - 1, (call.context_BT - budget).clamp(min=0))
        return Step(read, *attend.span(memory, call), sinks)

    def settle(self, memory: Memory, call: Call) -> None:
        """Cut what no later row will attend; note what the prompt left."""
        if call.phase == "prefill":
            memory.allowed = self._rows_BT(memory, call)[:, -1]
            if self.positions == "cache" and self.sinks:
                every = call.once((ALL_SINKS, self.sinks), lambda: self._all(call))
                memory.given = memory.given | ({ALL_SINKS: torch.tensor(every)} if every else {})
        if self.decode == "slide" or call.phase == "prefill":
            self._cut(memory, call)

    def _all(self, call: Call) -> bool:
        """Whether each prompt has all sinks: later rows ask it."""
        return bool((call.context_BT[:, -1] >= self.sinks).all())

    def _cut(self, memory: Memory, call: Call) -> None:
        if memory.clock is not None or memory.keys.view.shape[2] <= self._full(memory, 1):
            return
        stay = call.once(self._place_of("stay", memory), lambda: self._stay(memory, call))
        if stay is not None:
            memory.keep(stay, call.new if call.phase == "decode" else 0)

    def _stay(self, memory: Memory, call: Call) -> Tensor | None:
        """The rows that later ones will attend; None where that is all that is held."""
        budget = self._rows_BT(memory, call)[:, -1:]
        place, last = self._place(memory), (memory.seen - call.first)[:, None]
        sinks = (budget - 1).clamp(max=self.sinks)
        wanted = (place >= 0) & ((place >= last - (budget - sinks)) | (place < sinks))
        found = attend.rows_of(wanted[:, None])
        return found if self.keep is None or found.shape[2] < place.shape[1] else None
