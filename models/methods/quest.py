"""Quest: pages of the cache chosen by the box around their keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...kernels.chosen_prefill.eager import as_words, of_words
from ...kernels.grow_box import OP as GROW_BOX
from ...kernels.lowrank_score import OP as LOWRANK_SCORE
from ...kernels.page_rows import OP as PAGE_ROWS
from ...kernels.select_topk import OP as SELECT_TOPK
from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from .. import attend, many
from ..budget import Allowance, Cost, amount_of, asks_for_gaps, rows_once, widest, word_of
from ..call import Call
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory
from ..method import Method
from ..rows import Rows

BOUNDS_AT_ONCE = 2**26  # 256 MB


@dataclass(frozen=True)
class _Place:
    """Where a single row of each text stands, [B] each: the page that it is in, that page's rows so far; int32."""

    own: Tensor
    begun: Tensor
    zero: Tensor


@dataclass(frozen=True)
class Quest(Method):
    """The pages whose keys could have the largest product with the query are attended, and the page being written.

    Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference (arXiv 2406.10774). Nothing is evicted. A
    page is `page` rows from the text's start on; the smallest and largest component of its keys, per channel, are
    held beside (2 D numbers of a page and head, charged) and give an upper bound of q.k, which is read for every
    whole page. The page being written is always attended, as in the released code. The first `skip` layers stay
    dense.

    Arguments: `keep` a share of the row's causal length, `rows` a count, or `bytes` that a layer reads for a row, boxes
    included; whole pages are taken, never more than that, but always the page being written. `heads: kv` chooses pages
    for all query heads of a key/value head, by their largest bound; `heads: query` is the released code, where a head
    of its own is what a query head reads.
    """

    keep: Keep = None
    rows: RowCount = 1024
    bytes: ByteCount = None
    page: Annotated[int, Within(1)] = 16
    skip: Annotated[int, Within(0)] = 2
    heads: Literal["kv", "query"] = "kv"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        rules.rows_above(self, self.page - 1, f"is less than a page of {self.page}")

    def expects_gaps(self) -> bool:
        """A share of 1 asks for everything, or nearly."""
        return asks_for_gaps(self)

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step; a box for each page that begins meanwhile."""
        del memory
        return steps

    def landing(self, memory: Memory) -> Landing:
        """As it is; the box of its page grows in a launch of its own."""
        plain = Landing.plain(memory)
        return plain if memory.site.layer < self.skip else replace(plain, after=partial(self._grow, memory))

    def _grow(self, memory: Memory) -> None:
        """Let the box of the page being written hold the row that a pinned memory was given last."""
        keys, first = memory.keys.view, self._first(memory)
        GROW_BOX(keys, memory.keys.place.expand_as(first), first, memory.aux["boxes"].view, self.page)

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append, and draw the boxes of the pages that were written to."""
        memory.append(k_BGTD, v_BGTD)
        if memory.site.layer < self.skip:
            return
        if memory.clock is not None:
            self._grow(memory)
        else:
            self._draw(memory, k_BGTD)

    def _draw(self, memory: Memory, k_BGTD: Tensor) -> None:
        batch, groups, new, dim = k_BGTD.shape
        have = memory.aux["boxes"].view.shape[2] if "boxes" in memory.aux else 0
        more = -(-int(memory.seen) // self.page) - have
        keys, first = memory.keys.view, self._first(memory)
        if more:
            boxes = memory.aux.setdefault("boxes", Rows(tokens=self.page))
            boxes.append(k_BGTD.new_zeros(batch, groups, more, 2 * dim))
        page_BJ = self._touched(memory, new)
        row_BJP = first[:, None, None] + page_BJ[..., None] * self.page + torch.arange(self.page, device=keys.device)
        # a page that is not full repeats the last row: its box is not read before it is full, and drawn again then
        index = row_BJP.clamp(max=memory.seen - 1).flatten(1)[:, None, :, None].expand(-1, groups, -1, dim)
        paged = keys.gather(2, index).view(batch, groups, -1, self.page, dim)
        memory.aux["boxes"].put(page_BJ, torch.cat([paged.amax(3), paged.amin(3)], -1))

    def _touched(self, memory: Memory, new: int) -> Tensor:
        """Pages of each text that its new rows may lie in, [B, J]."""
        start = (memory.seen - new - self._first(memory)).clamp(min=0) // self.page
        pages = torch.arange(new // self.page + 2, device=start.device)
        return (start[:, None] + pages).clamp(max=memory.aux["boxes"].view.shape[2] - 1)

    @staticmethod
    def _first(memory: Memory) -> Tensor:
        assert memory.first is not None
        return memory.first

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Bound, choose, attend."""
        if memory.site.layer < self.skip:
            return self.attend_dense(q_BHTD, memory, call, ledger)
        if call.new > 1:
            return self._many(q_BHTD, memory, call, ledger)
        way = self._by_pages if many.plain(memory, call) else self._by_rows
        return way(q_BHTD, memory, call, ledger)

    def _by_pages(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """A single row that sees all before it chooses whole pages, and then knows their rows."""
        boxes, bounds = memory.aux["boxes"].view, self._bounds(q_BHTD, memory, call)
        cost, amount = self.cost(memory, call), amount_of(self, memory.site)
        room = call.once(("whole pages", amount, cost), partial(self._room, memory, call))
        most = widest(self, memory.site, memory.keys.view.shape[2], cost) // self.page
        chosen, pages = SELECT_TOPK(bounds, room, min(max(1, most), boxes.shape[2]))
        index, count = PAGE_ROWS(chosen, pages, call.context_BT[:, 0], call.first, self.page)
        read = count[..., None]
        if count.shape[1] != boxes.shape[1]:  # heads share a page of their group, and all have their own
            whole = attend.union_of_index(chosen, pages, boxes.shape[1], boxes.shape[2])
            read = self._place(call).begun[:, None, None] + whole * self.page
        ledger.count(memory, call, read, self._extra(memory, call))
        return attend.gathered(q_BHTD, memory, index, count, call)

    def _bounds(self, q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
        """Of a single row's whole pages, [B, N, P]; -inf beyond them."""
        at = self._place(call)
        bounds: Tensor = LOWRANK_SCORE(
            _halves(q_BHTD, call)[:, :, 0], memory.aux["boxes"].view, at.zero, at.own, self._reduce
        )
        return bounds

    def _place(self, call: Call) -> _Place:
        return call.once(("pages", self.page), partial(self._place_of, call))

    def _place_of(self, call: Call) -> _Place:
        own = self._own(call)[:, 0]
        return _Place(own, call.context_BT[:, 0].int() - own * self.page, torch.zeros_like(own))

    def _by_rows(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The same where pages are cut, as a sliding window does: each row has the bound of its page."""
        groups, held = memory.keys.view.shape[1:3]
        bounds = self._bounds(q_BHTD, memory, call)
        scores = self._by_row(bounds[:, :, None], memory, call, slice(None))[:, :, 0]
        width = min(widest(self, memory.site, held, self.cost(memory, call)) + self.page, held)
        index, count = SELECT_TOPK(scores, self._budget(memory, call)[:, 0].int(), width)
        read = attend.union_of_index(index, count, groups, held)
        ledger.count(memory, call, read, self._extra(memory, call))
        return attend.gathered(q_BHTD, memory, index, count, call)

    def _many(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        if not many.plain(memory, call):  # a sliding window cuts pages
            return self._through_rows(q_BHTD, memory, call, ledger)
        pages = memory.aux["boxes"].view.shape[2]
        size = max(attend.ROWS_AT_ONCE, BOUNDS_AT_ONCE // (q_BHTD.shape[0] * q_BHTD.shape[1] * pages))
        pieces = [slice(start, start + size) for start in range(0, call.new, size)]
        words, reads = zip(*(self._words(q_BHTD, memory, call, rows) for rows in pieces), strict=True)
        bits = torch.cat(words, 2)
        ledger.count(memory, call, torch.cat(reads, 2), self._extra(memory, call))
        if ledger.watch is None and many.fits(q_BHTD, memory, call):
            return many.chosen(q_BHTD, memory, call, bits, self.page)
        page_BS = self._page(memory, call).expand(*bits.shape[:3], -1)
        keep = of_words(bits, page_BS) & attend.visible_BNTS(memory, call)
        ledger.chosen(memory, call, q_BHTD, keep)
        return attend.masked(q_BHTD, memory, keep, call)

    def _words(self, q_BHTD: Tensor, memory: Memory, call: Call, rows: slice) -> tuple[Tensor, Tensor]:
        """The pages of some query rows as bits [B, N, t, W], and the rows that are read [B, G, t]."""
        boxes, own = memory.aux["boxes"].view, self._own(call)[:, None, rows]
        bounds = attend.group_scores(_halves(q_BHTD[:, :, rows], call), boxes, self._reduce)
        page = torch.arange(boxes.shape[2], device=boxes.device)
        begun = (call.context_BT[:, None, rows] - own * self.page).clamp(min=0)
        room = self._whole(memory, call)[:, rows]
        before = page < own[..., None]
        best = attend.largest(bounds.masked_fill(~before, -torch.inf), room)
        read = attend.union_BGT(best, boxes.shape[1]) * self.page + begun
        return as_words(best | (page == own[..., None])), read

    def _through_rows(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        boxes, budget, parts = memory.aux["boxes"].view, self._budget(memory, call), []
        for rows in attend.pieces(call):
            bounds = attend.group_scores(_halves(q_BHTD[:, :, rows], call), boxes, self._reduce)
            parts.append(attend.largest(self._by_row(bounds, memory, call, rows), budget[:, rows]))
        keep = torch.cat(parts, 2)
        ledger.chosen(memory, call, q_BHTD, keep)
        ledger.count(memory, call, attend.union_BGT(keep, boxes.shape[1]), self._extra(memory, call))
        return attend.masked(q_BHTD, memory, keep, call)

    @property
    def _reduce(self) -> str:
        return "max" if self.heads == "kv" else "none"

    def _own(self, call: Call) -> Tensor:
        """The page that each row is in, [B, T]; as many whole pages lie before it."""
        return ((call.context_BT - 1).clamp(min=0) // self.page).int()

    def cost(self, memory: Memory, call: Call) -> Cost:
        """Boxes of whole pages, and the rows chosen."""
        heads, row = memory.site.kv_heads_real, memory.keys.row_bytes + memory.values.row_bytes
        sets = call.group if self.heads == "query" else 1
        return Cost(row * sets * heads, memory.aux["boxes"].row_bytes / self.page * heads)

    def allowance(self, memory: Memory, call: Call) -> Allowance | None:
        """The budget, or the page being written where that is more; nothing in layers that stay dense."""
        if memory.site.layer < self.skip:
            return None
        if word_of(self) == "bytes":
            cost = self.cost(memory, call)
            least = self.page * cost.row + int(call.seen) * cost.visible
            return Allowance(read_bytes=max(amount_of(self, memory.site), least))
        sets = call.group if self.heads == "query" else 1
        rows = rows_once(self, memory, call, self.cost(memory, call))
        own = call.context_BT - self._own(call) * self.page
        return Allowance(attended_BT=((rows.maximum(own) - own) * sets + own).minimum(call.context_BT))

    def _whole(self, memory: Memory, call: Call) -> Tensor:
        """Whole pages that fit into the budget beside the row's own, [B, T]."""
        begun = call.context_BT - self._own(call) * self.page
        return (rows_once(self, memory, call, self.cost(memory, call)) - begun).clamp(min=0) // self.page

    def _room(self, memory: Memory, call: Call) -> Tensor:
        """The same of a single row, [B] int32."""
        return self._whole(memory, call)[:, 0].int()

    def _budget(self, memory: Memory, call: Call) -> Tensor:
        """Rows of these pages and of its own, [B, T]."""
        return call.context_BT - self._own(call) * self.page + self._whole(memory, call) * self.page

    def _by_row(self, bounds_BNTP: Tensor, memory: Memory, call: Call, rows: slice) -> Tensor:
        """The bound of each row's page; its own page comes first, what is not visible never; [B, N, T, S]."""
        visible, own = attend.visible_BNTS(memory, call, rows), self._own(call)[:, None, rows, None]
        page = self._page(memory, call).expand(*bounds_BNTP.shape[:3], -1)
        return bounds_BNTP.float().gather(3, page).masked_fill(page >= own, torch.inf).masked_fill(~visible, -torch.inf)

    def _page(self, memory: Memory, call: Call) -> Tensor:
        """The page of each row held, [B, 1, 1, S]."""
        place = memory.numbers_BS(call.first.shape[0]) - call.first[:, None]
        return (place.clamp(min=0) // self.page)[:, None, None]

    def _extra(self, memory: Memory, call: Call) -> Tensor:
        box = memory.aux["boxes"].row_bytes * memory.site.live
        return call.once(("boxes", box), lambda: self._own(call).double() * box)


def _halves(q_BHTD: Tensor, call: Call) -> Tensor:
    """The query's positive and negative part: times a page's largest and smallest components they give the bound."""
    least, most = call.once(("halves", q_BHTD.dtype), partial(_ranges, q_BHTD))
    return torch.clamp(q_BHTD[..., None, :], least, most).flatten(-2)


def _ranges(q_BHTD: Tensor) -> tuple[Tensor, Tensor]:
    """Where the two parts lie, [2, 1] each: from 0 on, and up to 0; without the host, so that a step is captured."""
    least, most = q_BHTD.new_zeros(2, 1), q_BHTD.new_zeros(2, 1)
    least[1].fill_(-torch.inf)
    most[0].fill_(torch.inf)
    return least, most
