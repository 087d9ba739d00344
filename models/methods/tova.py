"""TOVA: drop what the newest row attends least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount
from .. import attend
from ..budget import share
from ..call import Call
from ..evict import grouped, weights
from ..memory import Memory, Site
from ..stepwise import Stepwise
from ..walk import Marking


@dataclass(frozen=True)
class Tova(Stepwise):
    """Once the budget is full, a new row drops the row that the row before it attended least.

    Transformers are Multi-State RNNs (arXiv 2401.06104), Token Omission Via Attention. No row is protected but the new
    one; the prompt is cut by the attention of its last row. A row attends so many rows, itself included (in the paper's
    count one less wait between the steps), and reads the mark of each (the newest row's weight, 4 bytes, held too).

    Arguments: `keep` a share of the prompt (of the row's own causal length where nothing was prefilled), `rows` of each
    head, or `bytes` that a layer holds, marks included; the paper sees little loss from 1/8 of the text on. `heads:
    layer` (paper) averages the weights of all query heads, so that a layer's heads hold the same tokens; it needs all
    heads on one rank. `heads: kv` lets each key/value head choose for itself.
    """

    keep: Keep = 0.125
    rows: RowCount = None
    bytes: ByteCount = None
    heads: Literal["layer", "kv"] = "layer"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """None; a mean over all heads needs them here."""
        if self.heads == "layer":
            site.need_every_head("tova with heads: layer averages")
        return {}

    def mark(self, marks_BGS: Tensor, weights_BHTS: Tensor) -> Tensor:
        """The last row's weights."""
        last = weights_BHTS[:, :, -1:]
        if self.heads == "layer":
            return last.mean(1).expand_as(marks_BGS)
        return grouped(last, marks_BGS.shape[1], "mean")[:, :, 0]

    def marking(self, heads: int, groups: int) -> Marking:
        """A mean over the query heads of the layer, or of each group."""
        sets = 1 if self.heads == "layer" else groups
        return Marking(sets, 0.0, sets / heads)

    def mark_prompt(self, marks_BGS: Tensor, q_BHTD: Tensor, memory: Memory, call: Call) -> None:
        """Only the last row's weights stay."""
        last = slice(call.new - 1, call.new)
        seen = attend.visible_BNTS(memory, call, last)
        marks_BGS.copy_(self.mark(marks_BGS, weights(q_BHTD[:, :, last], memory, call, seen)))

    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """The marks: at the end of a prompt there is no new row to protect."""
        del call, rows_B
        return memory.aux["mark"].view[..., 0]

    def protected(self, rows_B: Tensor) -> Tensor:
        """Only the new row."""
        return share(1, rows_B)
