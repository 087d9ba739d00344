"""RatchetKV: sinks, a window, and a linear state of what lies between."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from ..budget import Allowance, amount_of, word_of
from ..call import Call
from ..evict import Evict
from ..feature_map import FeatureMap, load_map
from ..ledger import Ledger
from ..memory import Memory
from ..method import Method
from ..residual import Residual


@dataclass(frozen=True)
class RatchetKv(Residual):
    """The first rows and a window are attended exactly; what lies between is a linear state under a rectified map.

    The unpublished method of NTK-KV (github.com/menik1126/NTK-KV), whose maps stand in the tradition of NTK-Attention
    (arXiv 2406.14036), mended: each layer has its whole budget (there a shared counter took the state's rows from one
    layer after the other, and from none at the second prompt); prompts stay exact (there what was attended already was
    added once more, future rows included); the merge is one of logarithms and the sums are fp32 (exp of the sum
    overflowed, and features were half precision); prompts shorter than the budget stay whole; any model, any task.

    Keeps `sinks` first rows, the last ones, and the state: (2 D + 1)(D + 1) + 1 numbers in fp32 a key/value head, which
    are charged, as are the marks of the rows, which nothing reads here.

    Arguments: `rows` of each head, of which the state counts as 2 D + 1, so that rows - 2 D - 1 are held; `keep` a
    share of the prompt in the same count; or `bytes` that a layer holds, state and marks included. `features: released`
    is the map that the code computes, `written` the one that its lines say (see ratchet and ratchet_written in
    models/feature_maps). `decode: slide` lets a row leave for each new one, into the state; `decode: grow` is the
    source's: state and window stand still after the prompt. `guard: ratio` is the source's: components that the state
    changes by more than their own size stay as they were, so that an output need no longer be a mean of values; `none`
    (default) takes the merge as it is.
    """

    keep: Keep = None
    rows: RowCount = 2048
    bytes: ByteCount = None
    sinks: Annotated[int, Within(0)] = 4
    features: Literal["released", "written"] = "released"
    decode: Literal["slide", "grow"] = "slide"
    guard: Literal["none", "ratio"] = "none"
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    @functools.cached_property
    def feature_map(self) -> FeatureMap:
        """That of the code, or of its lines."""
        return load_map({"released": "ratchet", "written": "ratchet_written"}[self.features], None, 0)

    @property
    def centred(self) -> bool:
        """Never."""
        return False

    @property
    def windowed(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        rules.one_budget(self)

    def budget_B(self, memory: Memory, call: Call) -> Tensor:
        """Rows attended exactly at the end of a prompt, [B]."""
        return self._exact(memory, call.context_BT[:, -1], super().budget_B(memory, call))

    def rows_BT(self, memory: Memory, call: Call) -> Tensor:
        """The same for each row."""
        return self._exact(memory, call.context_BT, super().rows_BT(memory, call))

    def _exact(self, memory: Memory, there: Tensor, budget: Tensor) -> Tensor:
        """What the state leaves of a budget; a text within it stays whole.

        Raises:
            ValueError: nothing is left beside the sinks.
        """
        if word_of(self) == "bytes":  # the state's own are taken off already
            return budget
        state = self.feature_map.features(memory.site.head_dim)
        asked = torch.full_like(budget, int(amount_of(self, memory.site))) if word_of(self) == "rows" else budget
        if bool((asked <= state + self.sinks).any()):
            raise ValueError(
                f"ratchetkv: {int(asked.min())} rows leave none beside {self.sinks} sinks and a state that counts as "
                f"{state}: raise rows to at least {state + self.sinks + 1}"
            )
        return torch.minimum(asked - state, there.clamp(min=1))

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget; with `decode: grow`, what was decoded since comes on top."""
        return super().allowance(memory, call) if self.decode == "slide" else Evict.allowance(self, memory, call)

    def room(self, memory: Memory, steps: int) -> int:
        """None where a row leaves for each new one."""
        return super().room(memory, steps) if self.decode == "slide" else Method.room(self, memory, steps)

    def protected(self, rows_B: Tensor) -> Tensor:
        """All but the sinks."""
        return (rows_B - self.sinks).clamp(min=1)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Slide; or with `decode: grow` attend all that is held, and the state as the prompt left it."""
        if self.decode == "grow" and call.phase == "decode":
            return self.attend_dense(q_BHTD, memory, call, ledger)
        return super().attend(q_BHTD, memory, call, ledger)

    def checked(self, joined_BHTD: Tensor, exact_BHTD: Tensor) -> Tensor:
        """As it is, or with the source's guard."""
        if self.guard == "none":
            return joined_BHTD
        return torch.where((joined_BHTD / exact_BHTD - 1).abs() < 1, joined_BHTD, exact_BHTD)
