"""The one table: methods x tasks, with intervals, changes against dense, and what was really read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .label import by_number
from .numbers import letter, number, over_all, signed, span, times
from .points import points
from .significance import holm
from .stats import LEVEL

READ = ("density", "bytes_ratio", "held_ratio")
MOST_POOLED = 6
FEW = 10  # samples: docs/bias.md says how often an interval of so many holds the truth
ARROWS = {"lower": "↓", "higher": "↑"}
Point = Mapping[Any, Any]
Cells = Callable[[Point], tuple[str, str]]


@dataclass(frozen=True)
class Head:
    """What makes columns: a task's headline; a time has its bound beside it, and energy where it was measured."""

    heading: str
    better: str
    is_time: bool
    has_energy: bool
    has_naive: bool

    @property
    def titles(self) -> list[str]:
        """The columns' headings, always pairs."""
        first = [f"{self.heading} {ARROWS[self.better]}", "speed-up" if self.is_time else "Δ"]
        bound = ["bound", "of bound"] if self.is_time else []
        naive = ["over naive", "fastest dense"] if self.has_naive else []
        return [*first, *bound, *naive, *(["J/token", "J of full"] if self.has_energy else [])]


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
    return pd.DataFrame([_numbers(group) for group in _rows(found, keys).values()])


def _rows(found: pd.DataFrame, by: Sequence[str]) -> dict[tuple[str, ...], list[Point]]:
    rows = defaultdict[tuple[str, ...], list[Point]](list)
    for point in found.to_dict("records"):
        rows[tuple(str(point[name]) for name in by)].append(point)
    return rows


def lay_out(found: pd.DataFrame, cells: Cells) -> TextTable:
    """Points as text; `cells` (`long_cells`, `short_cells`) writes the estimate and the change of one point.

    The correction is over the comparisons of this table, whichever others there are.
    """
    found = found.assign(p_holm=holm(found["p"].to_numpy(dtype=float)))
    by = [name for name in ("model", "setting") if len(found[name].unique()) > 1] + ["method_label"]
    heads, notes = _heads(found), dict[str, str]()
    rows = [[*key, *_measures(group, heads, cells, notes)] for key, group in _rows(found, by).items()]
    titles = [title for head in heads for title in head.titles]
    listed = [f"[{mark}] {reason}" for reason, mark in notes.items()]
    headings = [*by[:-1], "method", *titles, "density", "bytes", "held", "peak GiB"]
    return TextTable(headings, rows, len(by), about(found), listed)


def about(found: pd.DataFrame) -> str:
    """What the columns of this table mean, for the lines below it."""
    return " ".join(_sentences(found))


def _sentences(found: pd.DataFrame) -> Iterator[str]:
    counts = found[found["n"] > 0].groupby("heading", sort=False)["n"].agg(["min", "max"])
    if counts.empty:
        yield "No cell has samples."
        return
    timed, tests = bool(found["is_time"].any()), int(found["p"].notna().sum())
    yield "In brackets: 95% bootstrap intervals (Wilson's of shares of right and wrong)."
    yield "Δ: difference to full on the samples that both have."
    if timed:
        yield "Speed-up: time of full (of its fastest kernel here) over time of the method; below 1 is slower."
    if tests:
        yield (
            "*: the interval of Δ excludes 0, of a speed-up 1, one comparison at a time; **: p < 0.05 after Holm's "
            f"correction over {over_all(tests)} (McNemar's exact test for right and wrong, else Student's t)."
        )
    if timed:
        yield "Bound: full's bytes read over the method's, the speed-up if a step were nothing but reading the cache."
    yield (
        "Density: share of the visible rows attended at decode; bytes: bytes read per token over those of full; held: "
        "bytes of the cache at the end over those of full; all three from the ledger."
    )
    if found["peak_gib"].notna().any():
        yield "Peak: of the device's allocator, where it was measured."
    sizes = [f"{h} {a if a == b else f'{a} to {b}'}" for h, a, b in counts.itertuples()]
    yield f"Samples: {', '.join(sizes)}."
    if (counts["min"] < FEW).any():
        yield f"Of fewer than {FEW} samples the bootstrap's intervals are too narrow."
    yield from _pooled(found)
    yield from _detectable(found)


def _pooled(found: pd.DataFrame) -> Iterator[str]:
    pairs = found.loc[found["pooled"] != "", ["heading", "pooled"]].drop_duplicates().sort_values(["heading", "pooled"])
    texts = [f"{head} ({what})" for head, what in pairs.itertuples(index=False)]
    if texts:
        said = f"Cells of several arguments in one number: {', '.join(texts[:MOST_POOLED])}"
        yield f"{said}; --where chooses one (`--where task.length=N`)."


def _detectable(found: pd.DataFrame) -> Iterator[str]:
    # the median of a column: one number a reader can hold a loss against
    known = found[np.isfinite(found["detectable"])].sort_values("is_time", kind="stable")
    middle = known.groupby(["is_time", "heading"], sort=False)["detectable"].median()
    texts = [f"{head} {times(value) if is_time else number(value)}" for (is_time, head), value in middle.items()]
    if texts:
        yield f"Smallest change that so many samples would show in four runs of five: {', '.join(texts)}."


def long_cells(point: Point) -> tuple[str, str]:
    """Estimate and change, each with its interval."""
    write = times if point["is_time"] else signed
    value = number(point["value"]) + _band(point["low"], point["high"], number)
    if math.isnan(point["change"]):
        return value, "dense" if point["is_dense"] else "no pairs"
    return value, write(point["change"]) + _star(point) + _band(point["change_low"], point["change_high"], write)


def short_cells(point: Point) -> tuple[str, str]:
    """The same for a terminal: bounds with three digits, the change without its interval."""
    band = "" if math.isnan(point["low"]) else f" [{number(point['low'], 3)},{number(point['high'], 3)}]"
    return number(point["value"]) + band, long_cells(point)[1].split(" [")[0]


def _band(low: float, high: float, write: Callable[[float], str]) -> str:
    return "" if math.isnan(low) else f" [{write(low)}, {write(high)}]"


def _star(point: Point) -> str:
    same = 1.0 if point["is_time"] else 0.0
    outside = point["change_low"] > same or point["change_high"] < same
    return "**" if point["p_holm"] < 1 - LEVEL else "*" if outside else ""


def _heads(found: pd.DataFrame) -> list[Head]:
    # scores first, then times: the order in which the table is read
    names = ["is_time", "heading", "better"]
    there = found.assign(energy=found["energy"].notna(), naive=found["naive"].notna())
    groups = there.groupby(names)[["energy", "naive"]].any().reset_index().sort_values(names, key=by_number)
    return [Head(str(h), str(b), bool(t), bool(e), bool(n)) for t, h, b, e, n in groups.itertuples(index=False)]


def _measures(group: Sequence[Point], heads: Sequence[Head], cells: Cells, notes: dict[str, str]) -> list[str]:
    known: Mapping[str, Point] = {point["heading"]: point for point in group}
    pairs = [pair for head in heads for pair in _pairs(known.get(head.heading), head, cells, notes)]
    peak = max((p["peak_gib"] for p in group if not math.isnan(p["peak_gib"])), default=math.nan)
    return [*(text for pair in pairs for text in pair), *(span([p[c] for p in group]) for c in READ), number(peak)]


def _pairs(point: Point | None, head: Head, cells: Cells, notes: dict[str, str]) -> list[tuple[str, str]]:
    pairs = [_pair(point, cells, notes)]
    if head.is_time:
        pairs.append(_bound(point))
    if head.has_naive:
        pairs.append(_naive(point))
    if head.has_energy:
        pairs.append(_energy(point))
    return pairs


def _bound(point: Point | None) -> tuple[str, str]:
    if point is None or point["is_dense"] or not point["bytes_ratio"] > 0:
        return "–", "–"
    bound = 1 / point["bytes_ratio"]
    return times(bound), "–" if math.isnan(point["change"]) else f"{point['change'] / bound:.0%}"


def _naive(point: Point | None) -> tuple[str, str]:
    return ("–", "–") if point is None else (times(point["naive"]), point["base"] or "itself")


def _energy(point: Point | None) -> tuple[str, str]:
    if point is None or math.isnan(point["energy"]):
        return "–", "–"
    return number(point["energy"]), "dense" if point["is_dense"] else times(point["energy_ratio"])


def _pair(point: Point | None, cells: Cells, notes: dict[str, str]) -> tuple[str, str]:
    if point is None:
        return "not asked", "–"
    if not point["failed"]:
        return cells(point)
    mark = notes.setdefault(point["reason"], letter(len(notes)))
    if point["failed"] == point["cells"]:
        return f"{point['status']} [{mark}]", "–"
    value, change = cells(point)
    return f"{value} [{mark}]", change


def _numbers(group: Sequence[Point]) -> dict[str, Any]:
    first = group[0]
    row: dict[str, Any] = {name: first[name] for name in ("model", "setting", "method", "method_label")}
    for point in group:
        head = point["heading"]
        change = f"{head}.{'speedup' if point['is_time'] else 'diff'}"
        row[head] = point["value"]
        row |= {f"{head}.{name}": point[name] for name in ("low", "high", "n", "status", "reason")}
        row |= {change + end.replace("_", "."): point[f"change{end}"] for end in ("", "_low", "_high")}
        row |= {f"{head}.{name}": point[name] for name in ("p", "p_holm", "test", "detectable", "energy")}
    return row | {name: pd.Series([point[name] for point in group], dtype=float).mean() for name in READ}
