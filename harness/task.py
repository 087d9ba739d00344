"""What a task is: a frozen dataclass, one file in harness/tasks, that measures something of a model under a method."""

from __future__ import annotations

import gzip
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from .lm import Session

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What a task measured on this rank; rank 0's is recorded.

    Attributes:
        metrics: numbers with units in their names.
        samples: raw values that the metrics come from.
        artifact: content of a safetensors file, for tasks that calibrate.
    """

    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = ()
    artifact: bytes | None = None


class Task(ABC):
    """Base of all tasks. A subclass is one file in harness/tasks, named like the file.

    Class attributes:
        version: raised when results of an older version no longer count.
        headline: the metric that stands for the task in tables; empty for calibrations.
        better: which direction of it is good.
    """

    version: ClassVar[int] = 1
    headline: ClassVar[str] = ""
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    @abstractmethod
    def run(self, session: Session) -> Outcome:
        """Measure, on every rank alike."""


@dataclass(frozen=True)
class Text:
    """One document of a corpus."""

    title: str
    text: str
    rest: Mapping[str, Any] = field(default_factory=dict)


def read_corpus(name: str) -> list[Text]:
    """Documents of harness/data/<name>.jsonl.gz, or of a path: .jsonl, .jsonl.gz (field `text`), else one plain text.

    Raises:
        ValueError: no such file, or a line without text.
    """
    shipped = ROOT / "harness" / "data" / f"{name}.jsonl.gz"
    path = shipped if shipped.exists() else Path(name)
    if not path.is_file():
        raise ValueError(f"no corpus {name!r}: give a name in harness/data or the path of a text or .jsonl file")
    raw = path.read_bytes()
    content = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    if ".jsonl" not in path.suffixes:
        return [Text(path.stem, content)]
    return [_document(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]


def _document(path: Path, number: int, line: str) -> Text:
    try:
        row = json.loads(line)
        return Text(str(row.get("title", number)), row["text"], row)
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}:{number}: expected a JSON object with the field `text`") from error
