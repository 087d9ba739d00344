"""L2 norm: keys of small norm stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...results.fields import Share, Within
from ..evict import Evict
from ..memory import Call, Memory


@dataclass(frozen=True)
class L2Norm(Evict):
    """The rows whose keys have the smallest norm, since those tend to be attended most.

    A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (arXiv 2406.11430). The prompt is cut once,
    per key/value head, without looking at queries; the first `skip` layers stay whole; no window or sink is
    protected. All that is held is read, and grows in decode. The cut reads each key once. KVCache-Factory does the
    same for every query head; kvpress's Knorm is `skip: 0`.

    Arguments: `k` rows of each head of the layers that are cut, a share of the prompt or a count (the paper drops up
    to half in language modelling); `skip` layers left whole: what the run holds in all is in the record.
    """

    k: Annotated[int | float, Share("the prompt")] = 0.5
    skip: Annotated[int, Within(0)] = 2
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def rows(self, memory: Memory, call: Call) -> Tensor:
        """Everything in the layers that are skipped."""
        return call.context_BT[:, -1] if memory.site.layer < self.skip else super().rows(memory, call)

    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """Minus the norm."""
        del call, rows_B
        return -memory.keys.view.float().norm(dim=-1)
