"""Records as one tidy table, a row per cell; the only file of this room that knows pandas."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .cell import Cell, canonical
from .plugins import label
from .record import Record
from .store import write_atomically

COLUMNS: Mapping[str, str] = {
    "key": "str",
    "status": "str",
    "reason": "str",
    "model": "str",
    "method": "str",
    "method_label": "str",
    "task": "str",
    "dtype": "str",
    "device": "str",
    "ranks": "int64",
    "prefill": "str",
    "query_aware": "bool",
    "seed": "int64",
    "density": "float64",
    "bytes_read_per_token": "float64",
    "bytes_dense_per_token": "float64",
    "bytes_held": "float64",
    "bytes_held_dense": "float64",
    "host": "str",
    "gpu": "str",
    "started": "str",
    "seconds": "float64",
}
ROW_GROUP = 16384
TEXTS = ("trace", "cell_json", "samples_json", "ledger_json", "provenance_json", "artifact_json")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record: identity, status, measures; what has no column of its own lies in JSON columns.

    The arguments of method and task are columns `method.k`, `task.length`; metrics bear their own names
    (`metric.seconds`, should one be named like a column of identity). `to_records` is the inverse.
    """
    rows = [_row(r) for r in records]
    return _typed(pd.DataFrame(rows, columns=_order({name for row in rows for name in row}), dtype=object))


def to_records(frame: pd.DataFrame) -> list[Record]:
    """The records that a table was made from."""
    names = metrics(frame)
    return [_record(row, names) for row in frame.to_dict("records")]


def metrics(frame: pd.DataFrame) -> list[str]:
    """Names of the columns that hold metrics."""
    known = {*COLUMNS, *TEXTS}
    return [c for c in frame.columns if c not in known and not c.startswith(("method.", "task."))]


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as .parquet or .csv; whoever reads it meanwhile sees the old file or the new one, whole.

    Raises:
        ValueError: another suffix.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: a table is written as .parquet or .csv, not {path.suffix or 'without a suffix'}")
    data = io.BytesIO()
    if path.suffix == ".parquet":
        # groups of a few thousand rows: whoever needs some texts does not read all
        frame.to_parquet(data, index=False, row_group_size=ROW_GROUP)
    else:
        # a lone carriage return inside a text is quoted only if every text is
        frame.to_csv(data, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_atomically(path, data.getvalue())


def read(path: Path) -> pd.DataFrame:
    """Read what `write` wrote; equal to the table that was written, types included.

    Raises:
        ValueError: there is no such file, or it is not such a table.
    """
    expect(path)
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (ValueError, OSError) as error:
        raise ValueError(unreadable(path, error)) from error
    check(list(frame.columns), path)
    return frame if path.suffix == ".parquet" else _typed(frame)


def expect(path: Path) -> None:
    """Raise ValueError unless there is a file with a suffix of such tables."""
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{path}: a table of records is a .parquet or .csv file; {_mend(path)}")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; {_mend(path)}")


def unreadable(path: Path, error: Exception) -> str:
    """What is said of a file that its library cannot read."""
    first = str(error).split("\n")[0]
    return f"{path} cannot be read as {path.suffix[1:]} ({first}); {_mend(path)}"


def check(names: Sequence[str], path: Path) -> None:
    """Raise ValueError if a column that every table of records has is missing."""
    missing = [c for c in (*COLUMNS, *TEXTS) if c not in names]
    if missing:
        raise ValueError(f"{path} is not a table of records: it has no column {missing[0]!r}; {_mend(path)}")


def _mend(path: Path) -> str:
    return f"make one with: lacuna collect SWEEP -o {path}"


def _row(record: Record) -> dict[str, Any]:
    return {**_identity(record), **_measures(record), **_rest(record)}


def _identity(record: Record) -> dict[str, Any]:
    cell = record.cell
    same = ("dtype", "device", "ranks", "prefill", "query_aware", "seed")
    return {
        **{name: getattr(record, name) for name in ("key", "status", "reason", "started", "seconds", "trace")},
        **{part: getattr(cell, part).name for part in ("model", "method", "task")},
        **{name: getattr(cell, name) for name in same},
        "method_label": label("methods", cell.method),
        **{f"method.{k}": _text(v) for k, v in cell.method.args.items()},
        **{f"task.{k}": _text(v) for k, v in cell.task.args.items()},
        "host": _text(record.provenance.get("host")) or "",
        "gpu": _text(record.provenance.get("gpu")) or "",
    }


def _measures(record: Record) -> dict[str, Any]:
    taken = {*COLUMNS, *TEXTS}
    decode = record.ledger.get("decode") or {}
    return {
        **{name: decode.get(name) for name in ("density", "bytes_read_per_token", "bytes_dense_per_token")},
        **{name: record.ledger.get(name) for name in ("bytes_held", "bytes_held_dense")},
        **{f"metric.{k}" if k in taken else k: v for k, v in record.metrics.items()},
    }


def _rest(record: Record) -> dict[str, str]:
    parts = {
        "cell": record.cell.to_json(),
        "samples": list(record.samples),
        "ledger": record.ledger,
        "provenance": record.provenance,
        "artifact": record.artifact,
    }
    return {f"{k}_json": json.dumps(v, separators=(",", ":")) for k, v in parts.items()}


def _record(row: Mapping[Any, Any], names: list[str]) -> Record:
    parts = {k: json.loads(row[f"{k}_json"]) for k in ("cell", "samples", "ledger", "provenance", "artifact")}
    same = {name: row[name] for name in ("status", "reason", "trace", "started", "seconds")}
    measured = {n.removeprefix("metric."): row[n] for n in names if pd.notna(row[n])}
    return Record(**{**same, **parts, "cell": Cell.from_json(parts["cell"])}, metrics=measured)


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else canonical(value)


def _order(names: set[str]) -> list[str]:
    fixed = {*COLUMNS, *TEXTS}
    args = sorted(n for n in names - fixed if n.startswith(("method.", "task.")))
    return [*COLUMNS, *args, *sorted(names - fixed - set(args)), *TEXTS]


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    # one rule for what comes from records and from a CSV file: a round trip keeps the types by construction
    columns = {name: _column(frame[name], COLUMNS.get(name) or _guess(name)) for name in frame.columns}
    return pd.DataFrame(columns, index=frame.index)


def _guess(name: str) -> str:
    return "str" if name in TEXTS else "argument" if name.startswith(("method.", "task.")) else "float64"


def _column(values: pd.Series[Any], kind: str) -> pd.Series[Any]:
    if kind == "str":
        return values.fillna("").astype("str")
    if kind == "bool":
        return values.astype(str).eq("True")
    present = values[values.notna() & values.ne("")].astype(str)
    if kind == "argument" and not present.map(lambda v: NUMBER.fullmatch(v) is not None).all():
        return present.reindex(values.index).astype("str")
    if kind == "int64":
        return pd.Series([int(v) for v in present], index=present.index, dtype="int64")
    return pd.Series([float(v) for v in present], index=present.index, dtype="float64").reindex(values.index)
