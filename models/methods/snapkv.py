"""SnapKV: the end of the prompt votes for what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount, Within
from ..evict import Observed


@dataclass(frozen=True)
class SnapKv(Observed):
    """The last rows of the prompt, and the rows that they attend most.

    SnapKV: LLM Knows What You are Looking for Before Generation (arXiv 2404.14469). The prompt is attended densely;
    then the attention of its last `window` rows, summed and pooled along the text, ranks all earlier rows, and the best
    of the budget less the window stay beside the window. Nothing is dropped in decode: every row held is read, and the
    cache grows by the rows decoded. Keys keep their positions. Compressing costs one pass of the window over the
    prompt's keys.

    Arguments: `keep` a share of the prompt, `rows` of each layer and head, or `bytes` that each layer holds, the window
    included. Defaults are
    the paper's for LongBench (it also uses window 16, kernel 5). Votes are joined over the query heads of a key/value
    head (`group`), so that the cache is as small as it says; `heads: query` is the released code of the authors and
    of KVCache-Factory, which repeats keys and values for every query head first, and is charged for all these copies.
    """

    keep: Keep = None
    rows: RowCount = 1024
    bytes: ByteCount = None
    window: Annotated[int, Within(1)] = 32
    kernel: Annotated[int, Within(1)] = 7
    pooling: Literal["max", "avg"] = "max"
    group: Literal["mean", "max", "sum"] = "mean"
    heads: Literal["kv", "query"] = "kv"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.observed(self)
