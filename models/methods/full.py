"""Dense attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from .. import attend
from ..ledger import Ledger
from ..memory import Call, Memory
from ..method import Method, count_dense


@dataclass(frozen=True)
class Full(Method):
    """Every row is kept and read: the baseline of accuracy and, through the fastest dense kernel, of time."""

    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "direct"

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend all that is visible."""
        count_dense(memory, call, ledger)
        return attend.dense(q_BHTD, memory, call)

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step."""
        del memory
        return steps

    def expects_gaps(self) -> bool:
        """None."""
        return False
