"""Rows of data: of a file (.jsonl, .csv, these with .gz, .parquet, plain text) or a dataset of the Hub; no torch."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HUB = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40}):(?P<config>[\w.-]*):(?P<split>[\w.\[\]:%-]+)"
)
SHIPPED = Path(__file__).resolve().parent / "data"
csv.field_size_limit(1 << 28)  # a document is one field

Row = Mapping[str, Any]


def hub_revision(name: str) -> str | None:
    """The commit that a name of the Hub pins; None where the name is no name of the Hub.

    Raises:
        ValueError: it begins like one and is none.
    """
    if not name.startswith("hub:"):
        return None
    found = HUB.fullmatch(name)
    if not found:
        raise ValueError(
            f"{name!r} is no data of the Hub: expected hub:ORG/NAME@COMMIT:CONFIG:SPLIT (CONFIG may be empty)"
        )
    return found["revision"]


def read_rows(name: str, fields: Sequence[str] = ()) -> list[Row]:
    """All rows of a name in harness/data, of a path, or of the Hub; each has the fields.

    Raises:
        ValueError: no such file or dataset, no row, a row that is none or lacks a field.
    """
    if hub_revision(name) is not None:
        rows = _of_hub(name)
    else:
        path = find(name)
        rows = _of_file(path, path.stat().st_mtime_ns)
    if not rows:
        raise ValueError(f"{name} has no rows")
    for number, row in enumerate(rows, 1):
        check_row(name, number, row, fields)
    return rows


def check_row(name: str, number: int, row: Row, fields: Sequence[str]) -> None:
    """Refuse a row that lacks a field.

    Raises:
        ValueError: it does.
    """
    lacking = [f for f in fields if f not in row]
    if lacking:
        raise ValueError(
            f"{name}:{number} lacks the field {lacking[0]!r}; it has: {', '.join(map(str, row)) or 'none'}"
        )


def find(name: str) -> Path:
    """The file of a name.

    Raises:
        ValueError: there is none.
    """
    shipped = SHIPPED / f"{name}.jsonl.gz"
    path = shipped if shipped.exists() else Path(name)
    if not path.is_file():
        raise ValueError(
            f"no data {name!r}: give a name in harness/data, a file's path, or hub:ORG/NAME@COMMIT:CONFIG:SPLIT"
        )
    return path


def first_row(path: Path) -> Row | None:
    """The first row of a file, or None where it has none; only as much is read as that takes.

    Raises:
        ValueError: it cannot be read.
    """
    if ".jsonl" not in path.suffixes:
        return next(iter(_of_file(path, path.stat().st_mtime_ns)), None)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return next(_json_rows(path, file), None)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


@functools.lru_cache(16)
def _of_file(path: Path, changed: int) -> list[Row]:
    del changed  # a part of the cache's key
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if ".jsonl" in path.suffixes:
        return list(_json_rows(path, io.StringIO(text, newline="\n")))
    if ".csv" in path.suffixes:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [{"title": path.name, "text": text}] if text.strip() else []


def _json_rows(path: Path, lines: Any) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: expected a JSON object") from error
        if not isinstance(row, dict):
            raise ValueError(  # noqa: TRY004 - of a file's content, not of an argument's type
                f"{path}:{number}: expected a JSON object, found {type(row).__name__}"
            )
        yield row


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet  # noqa: PLC0415 - most data needs no Arrow

    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
    return rows


@functools.lru_cache(4)
def _of_hub(name: str) -> list[Row]:
    """Through `datasets`, which keeps what it fetched; a script of a dataset is never run."""
    import datasets  # noqa: PLC0415 - it takes a second to import

    found = HUB.fullmatch(name)
    assert found
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its tries
    try:
        data = datasets.load_dataset(
            found["repo"], found["config"] or None, split=found["split"], revision=found["revision"]
        )
    except Exception as error:  # of many libraries: no network, no such set, no such split
        reason = (str(error).strip().splitlines() or [""])[0]
        why = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{name} cannot be had ({why}): it needs the network once, or give a file (--data)") from error
    return [dict(row) for row in data]
