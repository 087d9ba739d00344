"""Tables as a paper has them: its columns, its published rows, and ours below them from records.

Published values are quoted from the paper named in the table's note and say so in each row: other models, texts and
protocols than ours, to be compared along a row, not down a column. What was not run here is a row that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .numbers import letter, number
from .table import TextTable

NOT_RUN = "not run"
Point = Mapping[Any, Any]


@dataclass(frozen=True)
class Column:
    """What a column holds of ours: points of a method and of arguments, by name; `keep|k` is either name.

    Attributes:
        method: of the points; None: any, and then every method is a row of its own.
    """

    heading: str
    method: str | None = None
    args: Mapping[str, Any] | None = None
    task_args: Mapping[str, Any] | None = None

    def holds(self, point: Point) -> bool:
        """Whether a point belongs into the column."""
        mine = self.method is None or point["method"] == self.method
        return mine and _fits(point["method_args"], self.args) and _fits(point["task_args"], self.task_args)


@dataclass(frozen=True)
class Grid:
    """A table of a paper.

    Attributes:
        title: with the paper's number of the table.
        tasks: of which our points are; a grid without tasks has published rows only.
        published: (row's name, a text for each column, `–` where the paper has none).
        source: where the published values stand.
        spread: an argument of the task of which every value in our records is a column more.
        average: whether a cell is the mean over tasks (and `spread` gets a column of it).
        shows_density: whether our cells say the measured density, too.
    """

    title: str
    tasks: Sequence[str]
    columns: Sequence[Column]
    published: Sequence[tuple[str, Sequence[str]]]
    source: str
    spread: str = ""
    average: bool = False
    shows_density: bool = False


def lay_out(grid: Grid, found: pd.DataFrame) -> TextTable:
    """Published rows, then ours."""
    points = [p for p in found.to_dict("records") if p["task"] in grid.tasks]
    columns = [*grid.columns, *_spread(grid, points)]
    notes = dict[str, str]()
    rows = [[f"{name} (published)", *cells, *["–"] * (len(columns) - len(cells))] for name, cells in grid.published]
    ours = list(_ours(grid, columns, points, notes))
    rows += ours or [["measured here", *[NOT_RUN] * len(columns)]]
    about = f"{grid.title} Published: {grid.source}. Ours: estimates of these records; {_how(grid)}"
    return TextTable(["row", *(c.heading for c in columns)], rows, 1, about, [f"[{m}] {w}" for w, m in notes.items()])


def _how(grid: Grid) -> str:
    parts = ["means over the tasks that were run, each once" * grid.average, "@ measured density" * grid.shows_density]
    said = "; ".join(part for part in parts if part)
    return f"{said}; `{NOT_RUN}`: no cell of that kind." if said else f"`{NOT_RUN}`: no cell of that kind."


def _spread(grid: Grid, points: Sequence[Point]) -> Iterator[Column]:
    values = dict.fromkeys(p["task_args"].get(grid.spread) for p in points) if grid.spread else {}
    known = sorted(str(v) for v in values if v)
    yield from (Column(value, task_args={grid.spread: value}) for value in known)
    if grid.average and known:
        yield Column(f"mean of {len(known)}")


def _ours(grid: Grid, columns: Sequence[Column], points: Sequence[Point], notes: dict[str, str]) -> Iterator[list[str]]:
    by_method = all(column.method is None for column in columns)
    # two texts or tasks are two rows, where the columns are methods and the table is no mean over them
    several = not by_method and not grid.average and len({point["heading"] for point in points}) > 1
    names = ("model", "setting", *(["method_label"] if by_method else ["heading"] if several else []))
    rows: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        rows.setdefault(tuple(str(point[name]) for name in names), []).append(point)
    for key, group in rows.items():
        cells = [_cell(grid, [p for p in group if column.holds(p)], notes) for column in columns]
        if any(cell != NOT_RUN for cell in cells):
            yield [" ".join(part for part in key if part), *cells]


def _cell(grid: Grid, points: Sequence[Point], notes: dict[str, str]) -> str:
    if not points:
        return NOT_RUN
    good = [p for p in points if not np.isnan(p["value"])]
    if not good:
        mark = notes.setdefault(str(points[0]["reason"] or "it has no number"), letter(len(notes)))
        return f"{points[0]['status']} [{mark}]"
    if grid.average:
        return number(float(np.mean([p["value"] for p in good]))) + f" of {len(good)}" * (len(points) > 1)
    texts = dict.fromkeys(_text(grid, p) for p in good)
    return "; ".join(texts)


def _text(grid: Grid, point: Point) -> str:
    band = "" if np.isnan(point["low"]) else f" [{number(point['low'])}, {number(point['high'])}]"
    share = f" @ {point['density']:.2f}" if grid.shows_density and not np.isnan(point["density"]) else ""
    return number(point["value"]) + share + band


def _fits(args: Mapping[str, Any], wanted: Mapping[str, Any] | None) -> bool:
    return all(any(_given(args, name) == value for name in names.split("|")) for names, value in (wanted or {}).items())


def _given(args: Mapping[str, Any], name: str) -> Any:
    # `basis.rotary` is an argument of the calibration
    first, _, rest = name.partition(".")
    value = args.get(first)
    return _given(value, rest) if rest and isinstance(value, Mapping) else value
