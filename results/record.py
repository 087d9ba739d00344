"""What was measured: a Record. A cell that failed has one too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .cell import Cell

Status = Literal["ok", "invalid", "error", "oom", "timeout", "preempted"]
STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        status: ok; invalid (it ran, but what ran is not what was asked); error; oom; timeout; preempted.
        reason: one sentence, empty when ok.
        trace: the end of the traceback, empty when ok.
        metrics: numbers with their unit in the name (`perplexity`, `decode_ms_median`, `peak_gib`).
        samples: raw values, one mapping per sample, window or repeat; statistics are made from these.
        ledger: what attention really read and held (see models.ledger.Ledger.summary).
        artifact: {"sha256", "bytes"} of the file store.artifact(key), where the task yields one.
        provenance: where, with what and by which command.
        started: UTC, ISO 8601.
        seconds: wall time of the cell without the model's load.
    """

    cell: Cell
    status: Status
    reason: str = ""
    trace: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    ledger: Mapping[str, Any] = field(default_factory=dict)
    artifact: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """The cell's key."""
        return self.cell.key

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `from_json` reads back."""
        return {**vars(self), "cell": self.cell.to_json()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Record:
        """Inverse of `to_json`."""
        return cls(**{**raw, "cell": Cell.from_json(raw["cell"])})
