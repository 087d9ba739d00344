"""Landmark attention: blocks of the past chosen by the keys of landmark tokens that the model was trained with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from ..budget import Allowance, Cost, amount_of, asks_for_gaps, in_rows, word_of
from ..call import Call
from ..host_rows import HostRows
from ..inserted import Feed, Inserted
from ..landmark import Landmarked
from ..landmark_chances import Chances, Stretch
from ..landmark_places import Places, Plan
from ..landmark_rows import Rows
from ..ledger import Ledger
from ..memory import Memory
from ..method import Method

NONE, CONTROL = -1, -2  # marks of what is no landmark
NO_BOUND = 2**31


@dataclass(frozen=True)
class Landmark(Method):
    """The blocks whose landmark token scores highest are attended, each weighed by its landmark, and the row's chunk.

    Landmark Attention: Random-Access Infinite Context Length for Transformers (arXiv 2305.16300). Only for models that
    were trained with landmark tokens (task train), which are fed beside the text. A row attends its own chunk, which
    begins at a multiple of `chunk` tokens of its text, and k of the `blocks` last blocks before it (all, if none is
    said; older ones are dropped, first in, first out). Within a block rows share the weight of its landmark. Keys are
    kept turned by their place in their chunk, which never changes, landmarks' keys as they are before rotation; what a
    slot adds, queries are turned back by. Positions are stingy (section 3.3): k + 1 slots of a block stand before the
    chunk, the k last blocks keep their order in the slots 1 to k, older ones share slot 0, so that no distance exceeds
    (k + 1) blocks and a chunk, however long the text. Among scores that are equal in half precision (in the first layer
    many are) the oldest block wins. A prompt is read the same way, since no such model can attend densely far beyond
    its training length. Read for a row: the landmarks' keys, its chunk so far, and the chosen blocks; held: everything,
    or `blocks` blocks and a chunk, and all landmarks' keys.

    Arguments: `keep` a share of the row's causal length, `rows` a count, or `bytes` that a layer reads for a row,
    landmarks included; a whole chunk is taken off, and k is how many whole blocks fit into the rest, at least one. The
    default are 4 blocks of 50 beside a chunk of 250 (tables 1 and 2; 2 blocks are 350 rows). With `keep`, k and the
    distances above grow with the text, beyond what training saw. `chunk` in tokens, a multiple of the model's block;
    `choose` a set of blocks for each row and query head, for each `row` (the highest score of any head), or for each
    `head` (the highest score of any row of the chunk so far: the paper takes later rows of the chunk too, which
    decoding cannot know). Where query heads choose apart, `rows` and `keep` are of each of them. In a model that was
    trained with a control token (section 4.4) all blocks before the chunk are under it; a row that gives it a weight
    below `cutoff` reads none of them, and what is left is not scaled up. `offload: host` keeps keys and values of all
    blocks before the chunk in the host's memory, and fetches those that are chosen: then the device holds the chunk and
    the landmarks (appendix G; there heads choose for a whole chunk, which is `choose: head`, and least is fetched).
    """

    keep: Keep = None
    rows: RowCount = 450
    bytes: ByteCount = None
    chunk: Annotated[int, Within(1)] = 250
    blocks: Annotated[int, Within(1)] | None = None
    choose: Literal["row_and_head", "row", "head"] = "row_and_head"
    cutoff: Annotated[float, Within(0, 1)] = 0.0
    offload: Literal["none", "host"] = "none"
    version: ClassVar[int] = 4
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        rules.rows_above(self, self.chunk, f"leaves nothing beside the chunk of {self.chunk}")

    def expects_gaps(self) -> bool:
        """A share of 1 asks for everything."""
        return asks_for_gaps(self)

    def inserts(self, config: Any) -> Inserted:
        """The landmark tokens.

        Raises:
            ValueError: the model was trained without them, without the control token that `cutoff` is of, or with a
                block that does not divide the chunk or is more than `rows` leave beside it.
        """
        said = Landmarked.of(config)
        if self.cutoff and not said.gated:
            raise ValueError("landmark: this model was trained without a control token: leave out cutoff")
        if self.chunk % said.block:
            near = max(1, round(self.chunk / said.block)) * said.block
            raise ValueError(
                f"landmark: chunk {self.chunk} is no multiple of the model's block {said.block}: take {near}"
            )
        least = f"is less than the chunk of {self.chunk} and one of the model's blocks of {said.block}"
        rules.rows_above(self, self.chunk + said.block - 1, least)
        return Blocks(self, said)

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Keys turned by their place in their chunk, which stays as it is; values as they are."""
        assert memory.first is not None
        plan = self.plan(Landmarked.of(memory.site.config))
        number = memory.seen + torch.arange(k_BGTD.shape[2], device=k_BGTD.device) - memory.first[:, None]
        turns = memory.site.rotate.between(0, plan.long, k_BGTD)
        memory.append(turns(k_BGTD, plan.place(number % plan.chunk)[:, None, :, None])[:, :, :, 0], v_BGTD)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Choose, gather, attend."""
        return self.attend_all(q_BHTD, memory, call, ledger, self.stretch(memory, call, call.first[:, None][:, :0]))

    attend_dense = attend

    def attend_all(self, q_BHLD: Tensor, memory: Memory, call: Call, ledger: Ledger, stretch: Stretch) -> Tensor:
        """Attention of the text's rows, which the ledger counts, and of landmarks' behind them.

        They are attended in the order of their places, as in training.
        """
        queries, found = stretch.rows.spread(q_BHLD), []
        for piece, chances in stretch.pieces:
            rows = Rows(chances, memory, call)
            found.append((rows, rows.attend(queries[:, :, piece])))
        if ledger.watch is not None:  # as large as T x S, for those who watch
            whole = copy.copy(memory)  # tokens that lie elsewhere are told of, too
            whole.columns = None
            kept = torch.cat([rows.kept(part.chosen) for rows, part in found], 2)
            ledger.chosen(whole, call, q_BHLD[:, :, : call.new], stretch.text.back(kept))
        read_BGQ = _one_after_another([part.read_BGQ for _, part in found])
        marks = stretch.marks_BT * (memory.keys.row_bytes * memory.site.live)
        ledger.count(memory, call, stretch.text.back(read_BGQ[..., None])[..., 0], marks)
        return stretch.rows.back(_one_after_another([part.out for _, part in found]))

    def stretch(self, memory: Memory, call: Call, mark_BM: Tensor) -> Stretch:
        """The rows of a call, text and landmarks; the same in all layers that allow as much."""
        plan = self.plan(Landmarked.of(memory.site.config))
        at_BT = call.numbers_T[None] - call.first[:, None]
        text_BT = torch.where(at_BT < 0, -1, plan.place(at_BT))
        place_BL = torch.cat([text_BT, torch.where(mark_BM < 0, -1, (mark_BM + 1) * plan.length - 1)], 1)
        grown_B, lies_B = at_BT[:, -1] + 1, call.first - memory.numbers_BS(at_BT.shape[0])[:, 0]
        places = Places.between(plan, (grown_B - call.new).clamp(min=0), grown_B.clamp(min=0), call.new, lies_B)
        k_BQ = self.allowed(memory, call, places.at).int()
        heads, many = memory.keys.view.shape[1] * call.group, memory.extra["landmarks"].shape[2]
        chances = Chances(places, k_BQ, int(k_BQ.max()), many, memory.site.rotate)
        pieces = chances.pieces(heads, memory.site.head_dim)
        return Stretch(places.order(text_BT), places.order(place_BL), self._marks(plan, at_BT), pieces)

    @staticmethod
    def _marks(plan: Plan, at_BT: Tensor) -> Tensor:
        """Landmarks whose keys a row reads, [B, T]: those of blocks that it may choose, and of its chunk."""
        cached_BT = (at_BT // plan.chunk * plan.blocks).clamp(max=plan.most)
        landmarks_BT = (cached_BT + at_BT % plan.chunk // plan.block).clamp(min=0)
        return (landmarks_BT + (0 if plan.cutoff is None else 1)).double()

    def settle(self, memory: Memory, call: Call) -> None:
        """Drop rows that no text can need any more, or move those before the chunk to the host."""
        if self._keeps_all():
            return
        oldest_B = self._oldest(memory, memory.seen - call.first) + call.first
        held = memory.numbers_BS(call.first.shape[0])
        drop = int(oldest_B.min()) - int(held[0, 0])
        if drop > 0:
            if self.offload == "host":
                keys, values = memory.keys.view[:, :, :drop], memory.values.view[:, :, :drop]
                memory.host = HostRows.grown(memory.host, keys, values, self._on_host(memory, call))
            rows = torch.arange(drop, held.shape[1], device=held.device)
            memory.keep(rows.expand(held.shape[0], 1, -1))

    def _keeps_all(self) -> bool:
        return self.blocks is None and self.offload == "none"

    def _on_host(self, memory: Memory, call: Call) -> int:
        """Rows before the first chunk that some text of the batch can still need."""
        reach = (self.blocks or NO_BOUND) * Landmarked.of(memory.site.config).block
        start_B = (memory.seen - call.first) // self.chunk * self.chunk + call.first
        return reach + int(start_B.max() - start_B.min())

    def kept(self, memory: Memory, call: Call, before_BN: Tensor, after_BN: Tensor) -> Tensor:
        """A text's rows from the oldest that any text of the batch can need: they rise with the chunk, and fall."""
        if self._keeps_all():
            return super().kept(memory, call, before_BN, after_BN)
        oldest_BT = self._oldest(memory, call.numbers_T + 1 - call.first[:, None]) + call.first[:, None]
        return (call.numbers_T + 1 - oldest_BT.amin(0).maximum(call.first[:, None]))[:, None]

    def _oldest(self, memory: Memory, next_: Tensor) -> Tensor:
        """Place of the oldest row that the row at this place can need of those that are on the device."""
        reach = 0 if self.offload == "host" else (self.blocks or 0) * Landmarked.of(memory.site.config).block
        return (next_ // self.chunk * self.chunk - reach).clamp(min=0)

    def plan(self, said: Landmarked) -> Plan:
        """These arguments for a model that was trained so."""
        cutoff = self.cutoff if said.gated else None
        return Plan(self.chunk, self.blocks or NO_BOUND, self.choose, said.block, cutoff)

    def cost(self, memory: Memory, call: Call) -> Cost:
        """Landmarks of all blocks, and the rows chosen; the chunk is read once for all heads of a group."""
        heads, row = memory.site.kv_heads_real, memory.keys.row_bytes + memory.values.row_bytes
        sets = self._sets(call)
        said, key = Landmarked.of(memory.site.config), memory.keys.row_bytes
        fixed = key * said.gated - (sets - 1) * self.chunk * row
        return Cost(row * sets * heads, key / said.block * heads, fixed * heads)

    def allowed(self, memory: Memory, call: Call, at_BT: Tensor) -> Tensor:
        """Blocks that a row may choose whose text's last token is this one, [B, T]; the same for all of a chunk."""
        rows = in_rows(self, memory.site, self._reach(memory, at_BT), self.cost(memory, call))
        return ((rows - self.chunk) // Landmarked.of(memory.site.config).block).clamp(min=1)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget, or the chunk so far and one block where that is more; the same in layers that allow as much."""
        key = ("landmark allowance", amount_of(self, memory.site), self.cost(memory, call))
        return call.in_pass(key, partial(self._allowance, memory, call))

    def _allowance(self, memory: Memory, call: Call) -> Allowance:
        block, cost, sets = Landmarked.of(memory.site.config).block, self.cost(memory, call), self._sets(call)
        at_BT = call.context_BT - 1
        if word_of(self) == "bytes":
            widest = float(self._reach(memory, at_BT).max())
            least = cost.fixed + (self.chunk + block) * cost.row + widest * cost.visible
            return Allowance(read_bytes=max(amount_of(self, memory.site), least))
        own = at_BT.clamp(min=0) % self.chunk + 1
        rows = in_rows(self, memory.site, call.context_BT, cost).maximum(own + block)
        return Allowance(attended_BT=((rows - own) * sets + own).minimum(call.context_BT))

    def _reach(self, memory: Memory, at_BT: Tensor) -> Tensor:
        """Rows up to the end of each row's chunk, [B, T]; where bytes are asked for, those whose landmarks are read."""
        before = at_BT.clamp(min=0) // self.chunk * self.chunk
        if word_of(self) == "bytes" and self.blocks is not None:
            before = before.clamp(max=self.blocks * Landmarked.of(memory.site.config).block)
        return before + self.chunk

    def _sets(self, call: Call) -> int:
        return 1 if self.choose == "row" else call.group


def _one_after_another(parts: list[Tensor]) -> Tensor:
    """Of several pieces, along their rows; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


@dataclass(frozen=True)
class Blocks(Inserted):
    """The landmarks: one behind each block that is full. A mark is the block's number within its text.

    A model that has a control token gets it where a text begins, with the mark CONTROL.
    """

    method: Landmark
    said: Landmarked

    def plan(self, before_B: Tensor, after_B: Tensor) -> tuple[Tensor, Tensor]:
        """Those whose blocks become full."""
        old, new = before_B // self.said.block, after_B // self.said.block
        most = int((new - old).max())
        mark = old[:, None] + torch.arange(most, device=old.device)
        mark = mark.masked_fill(mark >= new[:, None], NONE)
        token = torch.full_like(mark, self.said.token)
        begins = (before_B == 0) & (after_B > 0)
        if not self.said.gated or not bool(begins.any()):
            return token, mark
        first = torch.where(begins, CONTROL, NONE)[:, None]
        return torch.cat([torch.full_like(first, self.said.control), token], 1), torch.cat([first, mark], 1)

    def write(self, memory: Memory, k_BGMD: Tensor, feed: Feed) -> None:
        """Each text's landmarks at their blocks' numbers, and its control token."""
        (batch, groups, _, dim), mark_BM = k_BGMD.shape, feed.marks
        if not k_BGMD.shape[2] and "landmarks" in memory.extra:
            return
        if self.said.gated:
            here = (mark_BM == CONTROL)[:, None, :, None]
            new = k_BGMD.masked_fill(~here, 0.0).sum(2, keepdim=True)
            memory.extra["control"] = torch.where(here.any(2, keepdim=True), new, memory.extra.get("control", new))
        before = memory.extra.get("landmarks", k_BGMD.new_zeros(batch, groups, 0, dim))
        highest = feed.once("highest", lambda: int(mark_BM.max()) if mark_BM.numel() else NONE)
        most = max(highest + 1, before.shape[2])
        grown = k_BGMD.new_zeros(batch, groups, most + 1, dim)  # what is none goes into the last row, and out
        grown[:, :, : before.shape[2]] = before
        place_BM = feed.once(("place", most), lambda: torch.where(mark_BM < 0, most, mark_BM))
        place = place_BM[:, None, :, None].expand_as(k_BGMD)
        memory.extra["landmarks"] = grown.scatter_(2, place, k_BGMD)[:, :, :most]

    def attend(self, q_BHLD: Tensor, memory: Memory, call: Call, ledger: Ledger, feed: Feed) -> Tensor:
        """A landmark reads what the last row of its block reads, one position later; it is no row of the text.

        A control token reads nothing.
        """
        amount = amount_of(self.method, memory.site), self.method.cost(memory, call)
        stretch = feed.once(amount, partial(self.method.stretch, memory, call, feed.marks))
        return self.method.attend_all(q_BHLD, memory, call, ledger, stretch)
