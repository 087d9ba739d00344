"""What an analysis is, that looks on while a method attends."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .call import Call
from .memory import Memory


class Observer(Protocol):
    """An analysis beside a method: it sees what the method is given and what it makes of it."""

    def arrived(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """See new keys and values as the model gives them, before the method writes them its own way."""

    def attended(self, memory: Memory, call: Call, q_BHTD: Tensor, out_BHTD: Tensor) -> Tensor:
        """See a call's query and output, before anything is evicted; returns what the model goes on with."""
