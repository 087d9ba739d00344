"""Which cells a table shows: conditions such as `task=needle` or `method.k=0.25`, and one table or several."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..results.fields import near
from .label import label_cells
from .points import from_cells
from .render import aligned
from .table import TextTable, lay_out, short_cells

BY = ("method", "model", "setting", "task")


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The records for which every `column=value` holds; numbers are compared as numbers (0.25 is .25).

    Raises:
        ValueError: a condition is not of that form, names no column, or nothing is left.
    """
    kept = frame
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise ValueError(f"--where {condition}: expected COLUMN=VALUE, such as task=needle")
        if name not in frame.columns:
            raise ValueError(f"--where {condition}: there is no column {name!r}; {near(name, map(str, frame.columns))}")
        kept = kept[_equals(kept[name], value)]
        if kept.empty:
            there = ", ".join(sorted({str(v) for v in frame[name].dropna()})[:12])
            raise ValueError(f"--where {condition}: no record has that; {name} has: {there}")
    return kept


def terminal(frame: pd.DataFrame, by: str) -> str:
    """The table for a terminal, sorted and headed by `by`, one row per method and budget.

    Raises:
        ValueError: there are no records.
    """
    found = from_cells(label_cells(frame))
    if by == "method":
        return aligned(lay_out(found, short_cells))
    column = {"task": "task_label"}.get(by, by)
    groups = [(str(name), rows) for name, rows in found.groupby(column, sort=True)]
    return "\n".join(_headed(f"{by} {name}".strip(), lay_out(rows, short_cells)) for name, rows in groups)


def _headed(title: str, table: TextTable) -> str:
    return f"{title}\n\n{aligned(table)}"


def _equals(column: pd.Series, value: str) -> pd.Series:
    texts = column.astype(str) == value
    try:
        wanted = float(value)
    except ValueError:
        return texts
    return texts | (pd.to_numeric(column, errors="coerce") == wanted)
