"""L2 norm: keys of small norm stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from ..budget import Allowance
from ..call import Call
from ..evict import Evict
from ..memory import Memory


@dataclass(frozen=True)
class L2Norm(Evict):
    """The rows whose keys have the smallest norm, since those tend to be attended most.

    A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (arXiv 2406.11430). The prompt is cut once,
    per key/value head, without looking at queries; the first `skip` layers stay whole; no window or sink is
    protected. All that is held is read, and grows in decode. The cut reads each key once. KVCache-Factory does the
    same for every query head; kvpress's Knorm is `skip: 0`.

    Arguments: `keep` a share of the prompt, `rows` of each head, or `bytes` that a layer holds, of the layers that are
    cut (the paper drops up to half in language modelling); `skip` layers left whole: what the run holds in all is in
    the record.
    """

    keep: Keep = 0.5
    rows: RowCount = None
    bytes: ByteCount = None
    skip: Annotated[int, Within(0)] = 2
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)

    def budget_B(self, memory: Memory, call: Call) -> Tensor:
        """Everything in the layers that are skipped."""
        return call.context_BT[:, -1] if memory.site.layer < self.skip else super().budget_B(memory, call)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """No bound in the layers that are skipped."""
        return Allowance() if memory.site.layer < self.skip else super().allowance(memory, call)

    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """Minus the norm."""
        del call, rows_B
        return -memory.keys.view.float().norm(dim=-1)
