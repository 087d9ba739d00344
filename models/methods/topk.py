"""Exact top-k attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount
from ..memory import Memory
from ..method import Select


@dataclass(frozen=True)
class Topk(Select):
    """The k rows with the largest q.k are attended: what any selection by a cheaper score is measured against.

    Keeps everything; reads every key for the scores, then key and value of the k rows chosen. Source: the exact top-k
    baseline of Loki (arXiv 2406.02542), which counts a share from all rows held (`rule: call`); here from the row's own
    causal length, so that a quarter really is a quarter of the causal pairs.

    Arguments: `keep` a share of the row's causal length, `rows` a count, or `bytes` that a layer reads for a row, keys
    for the scores included. `heads: kv` chooses once for the query heads of a group, by their largest score; `query`
    (Loki's code) for each of them, and what is read is the union.
    """

    keep: Keep = 0.25
    rows: RowCount = None
    bytes: ByteCount = None
    heads: Literal["kv", "query"] = "kv"
    rule: Literal["row", "call"] = "row"
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "select"

    def __post_init__(self) -> None:
        rules.one_budget(self)

    def project(self, q_BHTD: Tensor, memory: Memory) -> Tensor:
        """Keys are kept as they come."""
        del memory
        return q_BHTD

    def score_rows(self, q_BHTD: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """All D dimensions."""
        return q_BHTD, memory.keys.view

    def score_bytes(self, memory: Memory) -> float:
        """A whole key."""
        return memory.keys.row_bytes
