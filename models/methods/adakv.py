"""AdaKV: the heads of a layer share one budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from .. import attend
from ..evict import Observed
from ..memory import Site


@dataclass(frozen=True)
class AdaKv(Observed):
    """SnapKV where heads whose attention is spread out keep more rows than heads that look at few.

    Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation (arXiv 2407.11550), Ada-SnapKV. The pooled
    votes of all heads of a layer compete for heads * (rows - window) places; a head's budget is `floor` of an equal
    share plus the rest of its places won, rounded so that the layer holds heads * rows exactly (the released code
    loses some). Each head keeps its window. Read, growth and the query-head layout are as in SnapKV; heads hold
    different numbers of rows, and only those are charged (the eager cache is as wide as its longest head). The
    competition needs all heads of a layer on one rank.

    Arguments: `keep` a share of the prompt, `rows` of a head in the *mean over heads*, or `bytes` that a layer holds,
    the window included.
    """

    keep: Keep = None
    rows: RowCount = 1024
    bytes: ByteCount = None
    floor: Annotated[float, Within(0, 1)] = 0.2
    window: Annotated[int, Within(1)] = 32
    kernel: Annotated[int, Within(1)] = 7
    pooling: Literal["max", "avg"] = "max"
    group: Literal["mean", "max", "sum"] = "mean"
    heads: Literal["kv", "query"] = "kv"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.observed(self)

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """None; a budget over all heads needs them here."""
        site.need_every_head("adakv spreads one budget")
        return {}

    def head_rows(self, worth_BNS: Tensor, rows_B: Tensor) -> Tensor:
        """The floor, and places won."""
        window = rows_B.clamp(max=self.window)
        base, heads = rows_B - window, worth_BNS.shape[1]
        votes = worth_BNS.masked_fill(worth_BNS == torch.inf, -torch.inf).flatten(1)
        won = attend.largest(votes[:, None, None], (heads * base)[:, None]).view(worth_BNS.shape).sum(-1)
        line = self.floor * base[:, None].double() + (1 - self.floor) * won.double()
        upto = (line.cumsum(-1) + 1e-6).floor().long()  # running sums are rounded, so that the last is the whole budget
        return window[:, None] + upto.diff(prepend=torch.zeros_like(upto[:, :1]))
