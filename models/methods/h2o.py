"""H2O: heavy hitters by accumulated attention, and recent rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Share
from .. import attend, many
from ..budget import Allowance, asks_for_gaps, share
from ..call import Call
from ..evict import Evict, grouped
from ..in_cache import attend_in_cache
from ..landing import Landing
from ..ledger import Ledger
from ..memory import Memory
from ..method import count_dense
from ..stepwise import Stepwise
from ..walk import Marking


@dataclass(frozen=True)
class H2o(Stepwise):
    """The rows that have gathered most attention so far, and the last ones.

    H2O: Heavy-Hitter Oracle for Efficient Generative Inference (arXiv 2306.14048). Every row adds its causal attention
    to the mark of each row held, in the prompt and in decode; once the budget is full, a new one drops the row with the
    smallest mark that is not among the `recent` last. A row attends so many rows, itself included, and reads their
    marks (4 bytes each, held too). The query heads of a key/value head hold the same rows and add up their attention;
    with one query head each this is the paper's rule. The marks of a dense prompt
    cost its attention matrix once more.

    Arguments: `keep` a share of the prompt (of the row's own causal length where nothing was prefilled), `rows` of each
    head, or `bytes` that a layer holds, marks included; `recent` of the rows, a share or a count. The paper: 20%, half
    of it recent. `evict: step` is the paper; `evict: once` cuts only at the end of the prompt and lets the cache grow
    from there, as KVCache-Factory does under this name (there with a count of 8 or 32 recent rows). `positions: text`
    leaves the rows held where they stood; `positions: cache` counts them inside the cache, as the authors' code with a
    cache that really drops rows does: the keys are turned anew for each row.
    """

    keep: Keep = 0.2
    rows: RowCount = None
    bytes: ByteCount = None
    recent: Annotated[int | float, Share("the budget")] = 0.5
    evict: Literal["step", "once"] = "step"
    positions: Literal["text", "cache"] = "text"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)
        if isinstance(self.recent, int):
            rules.rows_above(self, self.recent, f"leaves no heavy ones beside {self.recent} recent")
        grows_in_cache = self.evict == "once" and self.positions == "cache"
        rules.refuse(self, when=grows_in_cache, why="evict: once keeps the text's positions: set positions: text")

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Drop, attend, mark; with `evict: once` attend what the prompt left, and all that came since."""
        if self.positions == "cache":
            return attend_in_cache(self, q_BHTD, memory, call, ledger)
        if self.evict == "step":
            return super().attend(q_BHTD, memory, call, ledger)
        if call.phase == "prefill":
            return self.attend_dense(q_BHTD, memory, call, ledger)
        count_dense(memory, call, ledger)
        return attend.dense(q_BHTD, memory, call)

    def room(self, memory: Memory, steps: int) -> int:
        """None, or with one cut a row a step; keys that are turned anew for each row are not captured."""
        if self.positions == "cache":
            raise ValueError("h2o with positions: cache turns all keys anew for each row: set engine: dynamic")
        return super().room(memory, steps) if self.evict == "step" else Evict.room(self, memory, steps)

    def landing(self, memory: Memory) -> Landing | None:
        """As it is after one cut, when nothing reads marks any more: those of rows to come are zero once pinned."""
        return Landing.plain(memory) if self.evict == "once" else super().landing(memory)

    def allowance(self, memory: Memory, call: Call) -> Allowance:
        """The budget; with one cut, what was decoded since comes on top."""
        return super().allowance(memory, call) if self.evict == "step" else Evict.allowance(self, memory, call)

    def mark(self, marks_BGS: Tensor, weights_BHTS: Tensor) -> Tensor:
        """Attention adds up."""
        return marks_BGS + grouped(weights_BHTS.sum(2, keepdim=True), marks_BGS.shape[1], "sum")[:, :, 0]

    def marking(self, heads: int, groups: int) -> Marking:
        """They add up over the query heads of a group."""
        del heads
        return Marking(groups, 1.0, 1.0)

    def mark_prompt(self, marks_BGS: Tensor, q_BHTD: Tensor, memory: Memory, call: Call) -> None:
        """Sums of columns, through a kernel where there is one."""
        if many.fits(q_BHTD, memory, call):
            marks_BGS.add_(many.attention_received(q_BHTD, memory, call))
        else:
            super().mark_prompt(marks_BGS, q_BHTD, memory, call)

    def protected(self, rows_B: Tensor) -> Tensor:
        """The recent rows."""
        return share(self.recent, rows_B)

    def expects_gaps(self) -> bool:
        """With one cut, a share of 1 asks for everything."""
        return self.evict == "step" or asks_for_gaps(self)
