"""The ledger of steps whose places are fixed: the same counts, with few additions a step and none for each layer.

A layer only leaves what it counted; once a step all layers are added up together, on the device, so that a captured
step counts at every replay. What the host knows (row sizes, heads) is multiplied in at the end.

Shapes: B batch, G key/value heads, L layers, N sets of rows held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .audit import Allowing
from .call import Call
from .ledger import PHASES, Kept, Ledger
from .memory import Memory
from .method import Method
from .rows import Clock

DECODE = PHASES.index("decode")


@dataclass
class _Count:
    """What one layer left in this step.

    Rows attended per head, or per part of each head's cache; bytes beside, a tensor, or the same for each row.
    """

    memory: Memory
    attended_BG: Tensor
    extra: Tensor | float
    row_bytes: int


def _text_rows_BG(memory: Memory) -> Tensor:
    """Rows of text that each real head holds."""
    assert memory.first is not None
    return memory.text_rows_BN(memory.first).expand(-1, memory.keys.view.shape[1])[:, : memory.live]


def _text_rows_LBG(memories: Sequence[Memory]) -> list[Tensor]:
    """The same of several layers, which may share one tensor of their rows' numbers."""
    found: dict[tuple[int, int], Tensor] = {}
    keys = [(id(memory.columns), memory.live) for memory in memories]
    for key, memory in zip(keys, memories, strict=True):
        if key not in found:
            found[key] = _text_rows_BG(memory)
    return [found[key] for key in keys]


def _summed_LB(rows: Sequence[Tensor]) -> Tensor:
    """Rows [B, G] of each layer, summed over its heads; layers of as many heads are added up together."""
    sizes = {rows_BG.shape[1] for rows_BG in rows}
    if len(sizes) == 1:
        return torch.stack(list(rows)).sum(2)
    alike = {heads: iter(_summed_LB([part for part in rows if part.shape[1] == heads])) for heads in sizes}
    return torch.stack([next(alike[rows_BG.shape[1]]) for rows_BG in rows])


@dataclass
class StepLedger(Ledger):
    """Counts steps on a clock, on top of what was counted before.

    Attributes:
        before: the ledger of the prompt.
        clock: of the steps.
        common: [2] rows, and tokens that they saw, float64.
        layers: [3, L] rows attended, bytes read beside them, rows kept; of all real heads.
        most: [L] the most rows that the heads of one text attended together in one step.
        method: whose budget the steps are held against.
        group: query heads of a key/value head.
    """

    before: Ledger = field(default_factory=Ledger)
    clock: Clock | None = None
    common: Tensor | None = None
    layers: Tensor | None = None
    most: Tensor | None = None
    method: Method | None = None
    group: int = 1
    _now: dict[int, _Count] = field(default_factory=dict)

    def count(
        self,
        memory: Memory,
        call: Call,
        attended_BGT: Tensor,
        extra_bytes_BT: Tensor | float,
        row_bytes: int | None = None,
    ) -> None:
        """Note one layer's counts; `close` adds them up."""
        if call.clock is not self.clock:  # the steps are over
            self.before.count(memory, call, attended_BGT, extra_bytes_BT, row_bytes)
            return
        each = memory.keys.row_bytes + memory.values.row_bytes if row_bytes is None else row_bytes
        self.group = call.group
        self._now[memory.site.layer] = _Count(memory, attended_BGT[:, : memory.live, 0], extra_bytes_BT, each)

    def count_parts(self, memory: Memory, call: Call, parts_BGX: Tensor, extra_bytes_BT: Tensor | float) -> None:
        """Note them as they are: `close` adds up the parts of all layers with their heads, at once."""
        if call.clock is not self.clock:
            self.before.count_parts(memory, call, parts_BGX, extra_bytes_BT)
            return
        self.count(memory, call, parts_BGX[..., :1], extra_bytes_BT)
        self._now[memory.site.layer].attended_BG = parts_BGX[:, : memory.live].flatten(1)

    def settle(self, memory: Memory, call: Call, arrived_BN: Tensor | None = None, kept: Kept | None = None) -> None:
        """In a step nothing is evicted that is not overwritten at once: `close` counts what is held."""
        if call.clock is not self.clock:
            self.before.settle(memory, call, arrived_BN, kept)

    def hold(self, memory: Memory, call: Call, allowing: Allowing, *, acted: bool) -> None:
        """Steps are held against their budgets in the end."""
        if call.clock is not self.clock:
            self.before.hold(memory, call, allowing, acted=acted)

    def close(self) -> None:
        """Add up a step; nothing is asked of the device."""
        assert self.clock is not None
        context_B = self.clock.context_BT[:, 0]
        real_B = (context_B > 0).double()
        counts = [self._now[layer] for layer in sorted(self._now)]
        attended_LB = _summed_LB([c.attended_BG for c in counts]) * real_B
        rows = torch.stack(
            [attended_LB.sum(1), self._beside_LB(counts, real_B).sum(1), self._kept_LB(counts, context_B).sum(1)]
        )
        common = torch.stack([real_B.sum(), context_B.clamp(min=0).sum().double()])
        most = attended_LB.amax(1)
        if self.common is None or self.layers is None or self.most is None:
            self.common, self.layers, self.most = common, rows, most
        else:
            self.common += common
            self.layers += rows
            torch.maximum(self.most, most, out=self.most)

    @staticmethod
    def _beside_LB(counts: list[_Count], real_B: Tensor) -> Tensor:
        """Bytes beside the rows, where they differ from row to row; layers often share one tensor of them."""
        found: dict[int, Tensor] = {}
        nothing = real_B * 0
        for extra in (c.extra for c in counts if isinstance(c.extra, Tensor)):
            if id(extra) not in found:
                found[id(extra)] = extra[:, 0] * real_B
        return torch.stack([found.get(id(c.extra), nothing) for c in counts])

    @staticmethod
    def _kept_LB(counts: list[_Count], context_B: Tensor) -> Tensor:
        """Rows of text held after the step, all real heads together; where all are held, that is known once."""
        memories = [c.memory for c in counts]
        whole = {live: context_B.clamp(min=0) * live for live in {memory.live for memory in memories}}
        cut = [memory for memory in memories if memory.columns is not None and "kept" not in memory.given]
        held_LB = _summed_LB(_text_rows_LBG(cut)) * (context_B > 0) if cut else ()
        counted = {memory.site.layer: rows_B for memory, rows_B in zip(cut, held_LB, strict=True)}
        known = {memory.site.layer: memory.given.get("kept", whole[memory.live]) for memory in memories}
        return torch.stack(list((known | counted).values())).double()

    def sums(self) -> Tensor:
        """As of any ledger: the prompt's counts and the steps' together."""
        table = self.before.sums()
        if self.common is None or self.layers is None:
            return table
        rows, context = self.common.tolist()
        joint_3B = torch.zeros(3, 1, dtype=torch.float64)
        table = torch.cat([table, table.new_zeros(1 + max(self._now) - len(table), 3, 6)]) if len(table) == 0 else table
        for layer, (attended, beside, kept) in zip(sorted(self._now), self.layers.T.tolist(), strict=True):
            now = self._now[layer]
            memory = now.memory
            live, copies = memory.site.live, memory.copies
            read = attended * now.row_bytes + beside + (0.0 if isinstance(now.extra, Tensor) else now.extra * rows)
            dense = live * context * memory.dense_row_bytes
            counts = [rows, live * context, attended / copies, kept / copies, read, dense]
            table[layer, DECODE] += torch.tensor(counts, dtype=torch.float64)
            held = torch.tensor([float(memory.held_bytes), float(memory.dense_bytes), live], dtype=torch.float64)
            table[layer, 2, :3] = table[layer, 2, :3].maximum(held)
            over_3B, joint = self._over(now, attended / copies, read, rows)
            if joint:  # only the sum over all layers, in the last, says something
                over_3B = joint_3B = joint_3B + over_3B
            if not joint or layer == memory.site.layers - 1:
                table[layer, 2, 3:] = table[layer, 2, 3:].maximum(over_3B.amax(1).clamp(min=0))
        return table

    def _over(self, now: _Count, attended: float, read: float, rows: float) -> tuple[Tensor, bool]:
        """How far a layer's steps went beyond their budget, as `audit` has it: rows attended, rows held, bytes.

        Contexts are known, so the budgets of all steps are asked for at once, after them, and held against the sums;
        no step costs more for it. A head's most rows are held against the largest budget too, where a layer has one of
        its own; where only the sum over layers counts, attended rows are a mean over texts, while held rows are each
        text's own. [3, B], negative below a budget; and whether only that sum counts.
        """
        memory = now.memory
        over = torch.zeros(3, memory.keys.view.shape[0], dtype=torch.float64)
        assert self.clock is not None
        call = self._all_steps(memory)
        allowance = self.method.allowance(memory, call) if self.method else None
        if allowance is None or not memory.site.live or not rows:
            return over, False
        part, bytes_ = memory.site.live / memory.site.kv_heads_real, []
        if allowance.attended_BT is not None:
            allowed_BT = allowance.attended_BT * (call.context_BT > 0)
            over[0] = (attended / memory.site.live - float(allowed_BT.sum())) / rows
            if not allowance.over_layers:
                over[0] = max(float(over[0, 0]), self._most_of(memory) - float(allowed_BT.max()))
        if allowance.held_B is not None and memory.first is not None:
            held_BN = memory.text_rows_BN(memory.first).double().expand(-1, memory.keys.view.shape[1])
            over[1] = (held_BN[:, : memory.live].mean(-1) - allowance.held_B).cpu()
        if allowance.read_bytes is not None:
            bytes_.append(read / rows - allowance.read_bytes * part)
        if allowance.held_bytes is not None:
            texts = memory.keys.view.shape[0]
            bytes_.append(float(memory.held_bytes) / texts - allowance.held_bytes * part)
        over[2] = max(bytes_, default=0.0)
        return over, allowance.over_layers

    def _all_steps(self, memory: Memory) -> Call:
        """One call whose rows are those of all steps."""
        assert self.clock is not None
        assert memory.first is not None
        new = int(self.clock.seen) - self.clock.begun
        return Call(None, memory.first, "decode", 1.0, int(self.clock.seen), new, group=self.group)

    def _most_of(self, memory: Memory) -> float:
        """The most rows that the heads of a layer attended in one step, in the mean over them."""
        assert self.most is not None
        return float(self.most[sorted(self._now).index(memory.site.layer)]) / memory.live
