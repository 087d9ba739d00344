"""What a method is: a frozen dataclass that says what is kept, what is attended and which auxiliary rows it holds.

Shapes: B batch, H query heads, G key/value heads, N sets of rows chosen (G or H), T query rows, S rows held, D head
dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..kernels.topk_decode import OP as TOPK_DECODE
from ..results import rules
from . import attend, many
from .budget import Allowance, Amount, Cost, amount_of, asks_for_gaps, in_rows, rows_once, widest, word_of
from .call import Call
from .inserted import Inserted
from .landing import Landing
from .ledger import Ledger, grown
from .memory import Memory, Site


class Method(ABC):
    """Base of the three shapes. A subclass is one file in models/methods, named like the file.

    Class attributes:
        version: raised when results of an older version no longer count.
        shape: direct, select or evict.
        by_length: names of tables [N, M] that a single query row looks up by how many tokens it sees.
        vectorised: whether T decode rows at once give what T steps give (else they are fed one by one).
    """

    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]]
    by_length: ClassVar[tuple[str, ...]] = ()
    vectorised: ClassVar[bool] = True

    def room(self, memory: Memory, steps: int) -> int:
        """Rows that so many steps add to a memory; whoever cannot say beforehand cannot be captured.

        Raises:
            ValueError: what a step does depends on numbers that the host must see, or shapes change.
        """
        del memory, steps
        name = rules.name_of(self)
        raise ValueError(f"{name} decodes with shapes that change from step to step: set engine: dynamic")

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """Tensors of a layer that each step reads (on the CPU; moved and cast by the binding); default none."""
        del site
        return {}

    def tables(self, site: Site) -> Mapping[str, Tensor]:
        """Tensors of a layer that keep their own precision and of which a step reads entries; default none."""
        del site
        return {}

    def inserts(self, config: Any) -> Inserted | None:
        """Tokens of its own that the method feeds beside the text, of a model with this configuration; default none.

        Raises:
            ValueError: the model does not know such tokens.
        """
        del config
        return None

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Put new rows into the memory; default as they are."""
        memory.append(k_BGTD, v_BGTD)

    def landing(self, memory: Memory) -> Landing | None:
        """How a single row is kept, so that one launch turns, projects and appends it; nothing is changed by asking.

        Default: as it is where `write` is the default, else None, and `write` is called.
        """
        return Landing.plain(memory) if type(self).write is Method.write else None

    @abstractmethod
    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attention of rows that the method acts on; returns [B, H, T, D] and counts what it read."""

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attention of a prompt that is to stay dense."""
        count_dense(memory, call, ledger)
        return attend.dense(q_BHTD, memory, call)

    def settle(self, memory: Memory, call: Call) -> None:  # noqa: B027 - most methods evict nothing
        """Evict after the call; default nothing."""

    def kept(self, memory: Memory, call: Call, before_BN: Tensor, after_BN: Tensor) -> Tensor:
        """Rows of text held after each of several new rows, had each been a step, [B, N, T]; default `ledger.grown`.

        `before` were held ahead of them, `after` are left in the end.
        """
        return grown(memory, call, before_BN, after_BN)

    def allowance(self, memory: Memory, call: Call) -> Allowance | None:
        """What these arguments allow a call that the method acted on or that ended a prompt; default no bound.

        The binding holds every call against it, after `settle`.
        """
        del memory, call
        return None

    def expects_gaps(self) -> bool:
        """Whether these arguments ask for less than everything; then a run without gaps is invalid."""
        return True


def count_dense(memory: Memory, call: Call, ledger: Ledger) -> None:
    """Count a call that read every visible row held."""
    groups = memory.keys.view.shape[1]
    if (memory.columns is None and call.clock is not None) or many.plain(memory, call):  # all that was seen
        rows = call.context_BT[:, None].expand(-1, groups, -1)
    elif memory.growth is not None:
        rows = memory.growth.rows_BN[..., None].expand(-1, groups, -1)
    else:
        rows = attend.visible_count_BNT(memory, call).expand(-1, groups, -1)
    ledger.count(memory, call, rows, 0.0)


class Select(Method):
    """Keeps the whole cache and chooses, per query row, the rows with the largest scores.

    A subclass is a dataclass with fields `keep`, `rows`, `bytes` (the budget: a share of the row's causal length, a
    count, or bytes read for a row by a layer), `heads` ("kv": one set of rows for the query heads of a key/value head,
    by their largest score; "query": a set for each, of `keep` or `rows` rows) and `rule` ("row": a share counts from
    the row's own causal length; "call": from all rows held, the rule of Loki's code).
    """

    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"
    keep: Amount
    rows: Amount
    bytes: Amount
    heads: str
    rule: str

    def expects_gaps(self) -> bool:
        """A share of 1 asks for everything."""
        return asks_for_gaps(self)

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step."""
        del memory
        return steps

    @abstractmethod
    def project(self, q_BHTD: Tensor, memory: Memory) -> Tensor:
        """The query in the coordinates of the memory's keys; [B, H, T, D]."""

    @abstractmethod
    def score_rows(self, q_BHTD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Queries [B, H, T, W] and keys [B, G, S, W] whose products rank the rows."""

    def score_bytes(self, memory: Memory) -> float:
        """Bytes read per visible row and head to rank it."""
        del memory
        return 0.0

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Dense, in the memory's coordinates."""
        return super().attend_dense(self.project(q_BHTD, memory), memory, call, ledger)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Rank, choose, attend: by index for one row, by mask for many."""
        q_BHTD = q_BHTD if call.query_in == "memory" else self.project(q_BHTD, memory)
        return self.attend_projected(q_BHTD, memory, call, ledger)

    def attend_projected(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The same, with a query in the coordinates of the memory's keys."""
        return (self._one if call.new == 1 else self._many)(q_BHTD, memory, call, ledger)

    def cost(self, memory: Memory, call: Call) -> Cost:
        """Bytes that a query row reads."""
        site, sets = memory.site, call.group if self.heads == "query" else 1
        row = (memory.keys.row_bytes + memory.values.row_bytes) * sets
        constants = sum(c.nbytes for c in memory.constants.values()) / max(1, len(site.kv_heads))
        heads = site.kv_heads_real
        return Cost(row * heads, self.score_bytes(memory) * heads, constants * heads)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget; where query heads choose apart, each may read rows of its own."""
        if word_of(self) == "bytes":
            return Allowance(read_bytes=amount_of(self, memory.site))
        sets = call.group if self.heads == "query" else 1
        return Allowance(attended_BT=(self._budget(call, memory) * sets).minimum(call.context_BT))

    def _budget_B(self, call: Call, memory: Memory) -> Tensor:
        """Of a single row, int32."""
        return self._budget(call, memory)[:, 0].int()

    def _budget(self, call: Call, memory: Memory) -> Tensor:
        rows = call.context_BT
        if self.rule == "row":
            return rows_once(self, memory, call, self.cost(memory, call))
        base = torch.zeros_like(rows) + memory.keys.count
        return in_rows(self, memory.site, base, self.cost(memory, call)).minimum(rows)

    def _one(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        lo, hi = attend.span(memory, call)
        q_BHTW, k_BGSW = self.score_rows(q_BHTD, memory)
        keys, values = memory.keys.view, memory.values.view
        held, cost = keys.shape[2], self.cost(memory, call)
        width, key = widest(self, memory.site, held, cost), ("budget", amount_of(self, memory.site), cost)
        budget_B = call.once(key, partial(self._budget_B, call, memory))
        ranked = (q_BHTW[:, :, 0], k_BGSW, lo, hi, self._reduce)
        out_BHD, index, count = TOPK_DECODE(q_BHTD[:, :, 0], keys, values, *ranked, budget_B, width, call.scale)
        read = attend.union_of_index(index, count, keys.shape[1], held)
        ledger.count(memory, call, read, self._extra(memory, call))
        return out_BHD[:, :, None]

    def _many(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        q_BHTW, k_BGSW = self.score_rows(q_BHTD, memory)
        budget = self._budget(call, memory)
        if ledger.watch is None and many.fits(q_BHTD, memory, call):
            kept = many.best(q_BHTW, k_BGSW, budget, q_BHTD, memory, call, self._reduce)
            ledger.count(memory, call, kept.read_BGT, self._extra(memory, call))
            return kept.out_BHTD
        outs, reads, keeps = [], [], []
        for rows in attend.pieces(call):
            scores = attend.group_scores(q_BHTW[:, :, rows], k_BGSW, self._reduce)
            seen = attend.visible_BNTS(memory, call, rows)
            keep = attend.largest(scores.masked_fill(~seen, -torch.inf), budget[:, rows])
            outs.append(attend.masked(q_BHTD[:, :, rows], memory, keep, call))
            reads.append(attend.union_BGT(keep, k_BGSW.shape[1]))
            keeps.append(keep[:0] if ledger.watch is None else keep)  # as large as T x S, for those who watch
        ledger.chosen(memory, call, q_BHTD, torch.cat(keeps, 2))
        ledger.count(memory, call, torch.cat(reads, 2), self._extra(memory, call))
        return torch.cat(outs, 2)

    @property
    def _reduce(self) -> str:
        return "max" if self.heads == "kv" else "none"

    def _extra(self, memory: Memory, call: Call) -> Tensor:
        batch, live = call.context_BT.shape[0], memory.site.live
        constant = sum(c.nbytes for c in memory.constants.values()) * live / max(1, len(memory.site.kv_heads)) / batch
        scored = self.score_bytes(memory) * live
        return call.once((scored, constant), lambda: call.context_BT.double() * scored + constant)
