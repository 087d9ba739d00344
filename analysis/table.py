"""The one table: methods x tasks, with intervals, changes against dense, and what was really read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .numbers import letter, number, signed, span, times
from .points import points

ARROWS = {"lower": "↓", "higher": "↑"}
Cells = Callable[["pd.Series[Any]"], tuple[str, str]]
Head = tuple[str, str, bool]


@dataclass(frozen=True)
class TextTable:
    """Headings and rows as text.

    Attributes:
        names: how many of the first columns name a row; the others are measures.
        about: what the columns mean.
        notes: what the letters in brackets refer to: why a cell has no number.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int
    about: str
    notes: Sequence[str]


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers of the table, one row per model, setting and method.

    For each task `<heading>`, `.low`, `.high`, `.n`, `.status`, `.reason`, and `.diff` (minus dense, same samples) or
    `.speedup` (time of dense over this time), with `.low`, `.high`; then density and bytes read relative to dense.

    Raises:
        ValueError: there are no records, or none of a task with a headline.
    """
    return wide(points(frame))


def wide(found: pd.DataFrame) -> pd.DataFrame:
    """`summary`, of points that are there already."""
    keys = ["model", "setting", "method_label"]
    return pd.DataFrame([_numbers(group) for _, group in found.groupby(keys, sort=False)])


def lay_out(found: pd.DataFrame, cells: Cells) -> TextTable:
    """Points as text; `cells` (`long_cells`, `short_cells`) writes the estimate and the change of one point."""
    by = [name for name in ("model", "setting") if len(found[name].unique()) > 1] + ["method_label"]
    heads, notes = _heads(found), dict[str, str]()
    rows = [[*map(str, key), *_measures(group, heads, cells, notes)] for key, group in found.groupby(by, sort=False)]
    titles = [
        t for head, better, is_time in heads for t in (f"{head} {ARROWS[better]}", "speed-up" if is_time else "Δ")
    ]
    listed = [f"[{mark}] {reason}" for reason, mark in notes.items()]
    headings = [*by[:-1], "method", *titles, "density", "bytes"]
    return TextTable(headings, rows, len(by), about(found), listed)


def about(found: pd.DataFrame) -> str:
    """What the columns mean, for the lines below a table."""
    counts = found[found["n"] > 0].groupby("heading", sort=True)["n"].agg(["min", "max"])
    sizes = [f"{h} {a if a == b else f'{a} to {b}'}" for h, a, b in counts.itertuples()]
    return (
        "In brackets: 95% bootstrap intervals (Wilson's where all scores or all pairs are equal). Δ: difference to "
        "full on the samples that both have. Speed-up: time of full over time of the method; below 1 is slower. *: the "
        "interval of Δ excludes 0, of a speed-up 1, one comparison at a time. Density: share of the visible rows "
        "attended at decode; bytes: bytes read per token over those of full; both measured. "
        f"Samples: {', '.join(sizes) or 'none'}."
    )


def long_cells(point: pd.Series[Any]) -> tuple[str, str]:
    """Estimate and change, each with its interval."""
    write = times if point["is_time"] else signed
    value = number(point["value"]) + _band(point["low"], point["high"], number)
    if point["is_dense"] or math.isnan(point["change"]):
        return value, "dense" if point["is_dense"] else "no pairs"
    return value, write(point["change"]) + _star(point) + _band(point["change_low"], point["change_high"], write)


def short_cells(point: pd.Series[Any]) -> tuple[str, str]:
    """The same for a terminal: bounds with three digits, the change without its interval."""
    band = "" if math.isnan(point["low"]) else f" [{number(point['low'], 3)},{number(point['high'], 3)}]"
    return number(point["value"]) + band, long_cells(point)[1].split(" [")[0]


def _band(low: float, high: float, write: Callable[[float], str]) -> str:
    return "" if math.isnan(low) else f" [{write(low)}, {write(high)}]"


def _star(point: pd.Series[Any]) -> str:
    same = 1.0 if point["is_time"] else 0.0
    return "*" if point["change_low"] > same or point["change_high"] < same else ""


def _heads(found: pd.DataFrame) -> list[Head]:
    # scores first, then times: the order in which the table is read
    unique = found[["heading", "better", "is_time"]].drop_duplicates().sort_values(["is_time", "heading"])
    return [(str(h), str(b), bool(t)) for h, b, t in unique.itertuples(index=False)]


def _measures(group: pd.DataFrame, heads: Sequence[Head], cells: Cells, notes: dict[str, str]) -> list[str]:
    known: Mapping[str, pd.Series[Any]] = {point["heading"]: point for _, point in group.iterrows()}
    pairs = [_pair(known.get(head), cells, notes) for head, _, _ in heads]
    return [*(text for pair in pairs for text in pair), span(group["density"]), span(group["bytes_ratio"])]


def _pair(point: pd.Series[Any] | None, cells: Cells, notes: dict[str, str]) -> tuple[str, str]:
    if point is None:
        return "not asked", "–"
    if not point["failed"]:
        return cells(point)
    mark = notes.setdefault(point["reason"], letter(len(notes)))
    if point["failed"] == point["cells"]:
        return f"{point['status']} [{mark}]", "–"
    value, change = cells(point)
    return f"{value} [{mark}]", change


def _numbers(group: pd.DataFrame) -> dict[str, Any]:
    first = group.iloc[0]
    row: dict[str, Any] = {name: first[name] for name in ("model", "setting", "method", "method_label")}
    for _, point in group.iterrows():
        head = point["heading"]
        change = f"{head}.{'speedup' if point['is_time'] else 'diff'}"
        row[head] = point["value"]
        row |= {f"{head}.{name}": point[name] for name in ("low", "high", "n", "status", "reason")}
        row |= {change + end.replace("_", "."): point[f"change{end}"] for end in ("", "_low", "_high")}
    return row | {name: group[name].mean() for name in ("density", "bytes_ratio")}
