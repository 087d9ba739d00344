"""H2O: heavy hitters by accumulated attention, and recent rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from ...results.fields import Share
from .. import attend
from ..evict import Stepwise, grouped
from ..ledger import Ledger
from ..memory import Call, Memory
from ..method import count_dense, share


@dataclass(frozen=True)
class H2o(Stepwise):
    """The rows that have gathered most attention so far, and the last ones.

    H2O: Heavy-Hitter Oracle for Efficient Generative Inference (arXiv 2306.14048). Every row adds its causal
    attention to the mark of each row held, in the prompt and in decode; once k rows are held, a new one drops the row
    with the smallest mark that is not among the `recent` last. A row attends k rows, itself included, and reads their
    marks (4 bytes each, held too). The query heads of a key/value head hold the same rows and add up their attention;
    with one query head each this is the paper's rule. Positions stay those of the text. The marks of a dense prompt
    cost its attention matrix once more.

    Arguments: `k` rows of each head, a share of the prompt (of the row's own causal length where nothing was
    prefilled), or a count; `recent` of them, a share of k or a count. The paper: 20%, half of it recent. `evict:
    step` is the paper; `evict: once` cuts only at the end of the prompt and lets the cache grow from there, as
    KVCache-Factory does under this name (there with a count of 8 or 32 recent rows).
    """

    k: Annotated[int | float, Share("the prompt")] = 0.2
    recent: Annotated[int | float, Share("the budget")] = 0.5
    evict: Literal["step", "once"] = "step"
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        if isinstance(self.recent, int) and isinstance(self.k, int) and self.recent >= self.k:
            raise ValueError(f"h2o: {self.recent} recent rows leave no heavy ones of k = {self.k}: raise k")

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Drop, attend, mark; with `evict: once` attend what the prompt left, and all that came since."""
        if self.evict == "step":
            return super().attend(q_BHTD, memory, call, ledger)
        if call.phase == "prefill":
            return self.attend_dense(q_BHTD, memory, call, ledger)
        count_dense(memory, call, ledger)
        return attend.dense(q_BHTD, memory, call)

    def mark(self, marks_BGS: Tensor, weights_BHTS: Tensor) -> Tensor:
        """Attention adds up."""
        return marks_BGS + grouped(weights_BHTS.sum(2, keepdim=True), marks_BGS.shape[1], "sum")[:, :, 0]

    def protected(self, rows_B: Tensor) -> Tensor:
        """The recent rows."""
        return share(self.recent, rows_B)

    def expects_gaps(self) -> bool:
        """With one cut, a share of 1 asks for everything."""
        return self.evict == "step" or isinstance(self.k, int) or self.k < 1
