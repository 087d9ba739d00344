"""What a task is: a frozen dataclass, one file in harness/tasks, that measures something of a model under a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .lm import Session
from .rows import read_rows


@dataclass(frozen=True)
class Outcome:
    """What a task measured on this rank; rank 0's is recorded.

    Attributes:
        metrics: numbers with units in their names.
        samples: raw values that the metrics come from.
        artifact: content of a safetensors file, for tasks that calibrate.
        invalid: why what was measured is not what was asked for; empty if it is.
    """

    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = ()
    artifact: bytes | None = None
    invalid: str = ""


class Task(ABC):
    """Base of all tasks. A subclass is one file in harness/tasks, named like the file.

    Class attributes:
        version: raised when results of an older version no longer count.
        headline: the metric that stands for the task in tables; empty for calibrations.
        better: which direction of it is good.
        ranks: what several ranks share: the model's tensors (each holds a slice), or the data (each holds the model).
    """

    version: ClassVar[int] = 1
    headline: ClassVar[str] = ""
    better: ClassVar[Literal["lower", "higher"]] = "higher"
    ranks: ClassVar[Literal["tensor", "data"]] = "tensor"

    @abstractmethod
    def run(self, session: Session) -> Outcome:
        """Measure, on every rank alike."""


@dataclass(frozen=True)
class Text:
    """One document of a corpus."""

    title: str
    text: str
    rest: Mapping[str, Any] = field(default_factory=dict)


def read_corpus(name: str, field: str = "text") -> list[Text]:
    """Documents: rows of a name in harness/data, of a file, or of the Hub; `field` has the text.

    Raises:
        ValueError: no such data, or a row without text.
    """
    rows = read_rows(name, (field,))
    return [Text(str(row.get("title", number)), row[field], row) for number, row in enumerate(rows, 1)]
