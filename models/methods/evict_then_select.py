"""Two methods in a row: one evicts, the other selects among what is left.

Shapes: B batch, H query heads, G key/value heads, J = H / G, T query rows, S rows held, D head dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...results import plugins, rules
from ...results.fields import ByteCount, Keep, Module, Needs, RowCount, Share, near
from .. import attend
from ..budget import Allowance
from ..call import Call, Extent
from ..evict import Evict
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory, Site
from ..method import Method, Select
from ..rows import Growth
from ..stepwise import Stepwise

WORDS = ("keep", "rows", "bytes")


@dataclass(frozen=True)
class EvictThenSelect(Method):
    """A prompt is compressed by one method, and each row attends what another one selects among the rows left.

    Eviction bounds what is held, selection what is read: SnapKV (arXiv 2404.14469) before Loki (arXiv 2406.02542), or
    any two that fit. `evict` is a method that cuts a prompt once (snapkv, pyramidkv, adakv, l2norm, keydiff): one that
    drops a row at every step ranks rows by attention that a selection does not compute, and is refused. `select` is
    one that ranks rows by products (topk, loki): pages and thresholds are made for texts without gaps, and are refused.

    Keeps what the first one keeps, in the second one's layout, auxiliary rows included. Each head is to the second one
    a text of its own, made of the rows that it holds. Reads what the second one reads of such a text.

    Arguments: `keep`, `rows` or `bytes` are the budget of the eviction; `read` that of the selection, a share of the
    rows a head still holds, or a count. `evict_args` and `select_args` are further arguments of the two; `basis`, those
    of the task pca, is what loki needs.
    """

    evict: Annotated[str, Module("models/methods")] = "snapkv"
    select: Annotated[str, Module("models/methods")] = "topk"
    keep: Keep = None
    rows: RowCount = 1024
    bytes: ByteCount = None
    read: Annotated[int | float, Share("the rows held")] = 0.25
    evict_args: Mapping[str, Any] = field(default_factory=dict)
    select_args: Mapping[str, Any] = field(default_factory=dict)
    basis: Annotated[Mapping[str, Any] | None, Needs("pca")] = None
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        own = [name for name in WORDS if name in self.evict_args or name in self.select_args]
        rules.refuse(self, when=bool(own), why=f"{', '.join(own)} inside: budgets are keep, rows, bytes and read")
        first, second = plugins.load("methods", self.evict), plugins.load("methods", self.select)
        once = issubclass(first, Evict) and not issubclass(first, Stepwise)
        rules.refuse(self, when=not once, why=f"{self.evict} does not cut a prompt once: no evict for this")
        ranks = issubclass(second, Select)
        rules.refuse(self, when=not ranks, why=f"{self.select} does not rank rows by products: no select for this")
        copies = getattr(self.first, "heads", "kv") == "query"
        rules.refuse(self, when=copies, why=f"{self.evict} with heads: query holds copies of heads: leave it at kv")
        wants = any(one.name == "basis" for one in plugins.describe("methods", self.select).fields)
        need = "needs a calibration: give basis: {}" if wants else "takes no calibration: leave basis out"
        rules.refuse(self, when=wants != (self.basis is not None), why=f"{self.select} {need}")

    @functools.cached_property
    def first(self) -> Evict:
        """The method that evicts."""
        budget = {word: getattr(self, word) for word in WORDS}
        return _made(self.evict, {**self.evict_args, **budget})

    @functools.cached_property
    def second(self) -> Select:
        """The method that selects."""
        word = "rows" if isinstance(self.read, int) else "keep"
        budget = {name: self.read if name == word else None for name in WORDS}
        return _made(self.select, {**self.select_args, **budget})

    def expects_gaps(self) -> bool:
        """Unless both keep everything."""
        return self.first.expects_gaps() or self.second.expects_gaps()

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """Those of both."""
        return {**self.first.constants(site), **self.second.constants(site)}

    def tables(self, site: Site) -> Mapping[str, Tensor]:
        """Those of both."""
        return {**self.first.tables(site), **self.second.tables(site)}

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """As the selection needs it."""
        self.second.write(memory, k_BGTD, v_BGTD)

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """All that is held, in the selection's coordinates."""
        return self.second.attend_dense(q_BHTD, memory, call, ledger)

    def room(self, memory: Memory, steps: int) -> int:
        """What the eviction adds; the selection asks for no more."""
        return self.first.room(memory, steps)

    def landing(self, memory: Memory) -> Landing | None:
        """As the selection has it."""
        return self.second.landing(memory)

    def settle(self, memory: Memory, call: Call) -> None:
        """Compress the prompt; products of queries and keys are the same in the selection's coordinates."""
        if call.phase == "prefill":
            assert call.query is not None
            self.first.settle(memory, replace(call, query=self.second.project(call.query, memory)))

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Select among the rows that each head holds."""
        q = q_BHTD if call.query_in == "memory" else self.second.project(q_BHTD, memory)
        (batch, heads, rows, size), groups = q.shape, memory.keys.view.shape[1]
        own, told = _apart(memory), _Read()
        if ledger.watch is not None:
            told.watch = told.note
        text = _text(memory, call) if memory.clock is None else _pinned_text(memory, own, call)
        out = self.second.attend_projected(q.reshape(batch * groups, heads // groups, rows, size), own, text, told)
        ranked, beside = self.second.score_bytes(memory), _constant_bytes(memory) / batch
        extra = text.once(("bytes", ranked, beside), lambda: _held_BT(text, memory) * ranked + beside)
        assert told.rows is not None
        if told.keep is not None:
            ledger.chosen(memory, call, q, told.keep.unflatten(0, (batch, groups)).flatten(1, 2))
        ledger.count(memory, call, told.rows[:, 0].unflatten(0, (batch, groups)), extra)
        return out.reshape(batch, heads, rows, size)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """What the eviction may hold, and the selection read of it."""
        held = self.first.allowance(memory, call)
        there = call.context_BT if held.attended_BT is None else held.attended_BT
        sets = call.group if self.second.heads == "query" else 1
        amount = self.read if isinstance(self.read, int) else there.double() * self.read
        budget = torch.zeros_like(there, dtype=torch.float64) + amount
        return replace(held, attended_BT=(budget.clamp(min=1) * sets).minimum(there.double()))


class _Read(Ledger):
    """Takes down how many rows were read, and which; what else is read the composition knows."""

    rows: Tensor | None = None
    keep: Tensor | None = None

    def note(self, memory: Memory, call: Call, q_BHTD: Tensor, keep_BNTS: Tensor) -> None:
        """Note which rows were chosen, where somebody watches."""
        del memory, call, q_BHTD
        self.keep = keep_BNTS

    def count(
        self,
        memory: Memory,
        call: Call,
        attended_BGT: Tensor,
        extra_bytes_BT: Tensor | float,
        row_bytes: int | None = None,
    ) -> None:
        """Note the rows."""
        del memory, call, extra_bytes_BT, row_bytes
        self.rows = attended_BGT


def _made(name: str, args: Mapping[str, Any]) -> Any:
    """A method.

    Raises:
        ValueError: it has no such arguments.
    """
    known = {one.name for one in plugins.describe("methods", name).fields}
    if unknown := sorted(args.keys() - known):
        raise ValueError(f"evict_then_select: {name} has no argument {unknown[0]!r}: {near(unknown[0], known)}")
    return plugins.load("methods", name)(**args)


def _apart(memory: Memory) -> Memory:
    """The rows of each head as a text of its own."""
    own = Memory(memory.site, memory.constants)
    own.keys, own.values = memory.keys.apart(), memory.values.apart()
    own.aux = {name: part.apart() for name, part in memory.aux.items()}
    own.seen = own.keys.view.shape[2]
    return own


def _text(memory: Memory, call: Call) -> Call:
    """The call on these: padding is what is a hole in a head's rows."""
    batch, groups = memory.keys.view.shape[:2]
    visible = attend.visible_BNTS(memory, call).expand(-1, groups, -1, -1).flatten(0, 1)
    numbers = memory.numbers_BNS(batch).expand(-1, groups, -1)
    first = (numbers < call.first[:, None, None]).sum(-1).flatten()
    return replace(call, visible=visible, first=first, seen=numbers.shape[2], query=None)


def _pinned_text(memory: Memory, own: Memory, call: Call) -> Call:
    """The same of a pinned memory: what lies before a head's rows is padding; once for all layers that stand alike."""
    heads = own.keys.view.shape[0]
    own.growth, text = call.once(
        ("apart", heads, id(memory.growth)), lambda: _grown(*attend.span(memory, call), heads, call)
    )
    return replace(text, scale=call.scale)  # a layer's own


def _grown(lo: Tensor, hi: Tensor, heads: int, call: Call) -> tuple[Growth, Call]:
    """Where the rows of each head stand, and the call on these; how many they are is not worked out from numbers."""
    lo, hi = (end if len(end) == heads else end.repeat_interleave(heads // len(end)) for end in (lo, hi))
    seen, rows_BN = hi[0], (hi - lo)[:, None]
    text = replace(call, visible=None, seen=seen, query=None, clock=None).told(Extent(lo, hi[:1] - 1, rows_BN))
    return Growth(lo, hi, rows_BN), text


def _held_BT(text: Call, memory: Memory) -> Tensor:
    """Rows that the real heads of each text hold."""
    batch, groups = memory.keys.view.shape[:2]
    return text.context_BT.unflatten(0, (batch, groups))[:, : memory.live].sum(1, dtype=torch.float64)


def _constant_bytes(memory: Memory) -> float:
    """Bytes of the constants of all real heads."""
    whole = sum(part.nbytes for part in memory.constants.values())
    return whole * memory.site.live / max(1, len(memory.site.kv_heads))
