"""What figures of scores share: panels of marks with intervals, joined along a method's one budget, and dense."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .label import title
from .style import MOST_DEALT, MOST_PANELS, dealt, legend, look, panels, paper, whiskers

TALL = 30  # letters beside a panel


def scores(points: pd.DataFrame, place: str) -> pd.DataFrame:
    """The points of tasks with a score that have a finite value and a place on the axis.

    Raises:
        ValueError: none of them is of a sparse method.
    """
    found: pd.DataFrame = points[~points["is_time"].astype(bool) & np.isfinite(points["value"]) & points[place].notna()]
    if found["is_dense"].all():
        words = place.replace("_", " ")
        raise ValueError(f"needs a cell that ended well, of a sparse method and a task with a score, with its {words}")
    return found


def score_panels(found: pd.DataFrame, place: str, words: str) -> Figure:
    """One panel per model, setting and task: the score by `place`, and the dense one as a line with its interval."""
    groups, note = dealt(found, ["model", "setting", "task_label"])
    with paper():
        most = max(MOST_PANELS, min(len(groups), MOST_DEALT))
        figure, pairs = panels(groups, min(3, len(found["task_label"].unique())), 2.5, 2.2, most, note)
        for axis, group in pairs:
            _panel(axis, group, place)
            axis.set_xlabel(words)
        level([axis for axis, _ in pairs])
        legend(figure, [axis for axis, _ in pairs])
    return figure


def level(axes: Sequence[Axes]) -> None:
    """One scale for panels of one score and condition: methods in different panels are compared too."""
    same: dict[tuple[str, str, str], list[Axes]] = {}
    for axis in axes:
        same.setdefault((axis.get_title(), axis.get_xlabel(), axis.get_ylabel()), []).append(axis)
    for alike in same.values():
        lows, highs = zip(*(axis.get_ylim() for axis in alike), strict=True)
        for axis in alike:
            axis.set_ylim(min(lows), max(highs))


def _panel(axis: Axes, group: pd.DataFrame, place: str) -> None:
    first = group.iloc[0]
    for dense in group[group["is_dense"].astype(bool)].to_dict("records"):
        axis.axhline(dense["value"], color=look("full").colour, linestyle="--", linewidth=0.9, label="full (dense)")
        axis.axhspan(dense["low"], dense["high"], color=look("full").colour, alpha=0.08, linewidth=0)
    for method, marks in group[~group["is_dense"].astype(bool)].groupby("method", sort=True):
        joined(axis, str(method), marks.sort_values(place), place)
    axis.set(xlim=(0, 1.03), ylabel=f"{fill(first['heading'], TALL)}\n({first['better']} is better)")
    axis.set_title(title(group))


def joined(axis: Axes, method: str, marks: pd.DataFrame, place: str) -> None:
    """A method's marks with their intervals, joined where one argument varies."""
    mine = look(method)
    # with two arguments that vary a line would join marks that are no curve
    line = "-" if len(varied(marks)) <= 1 else "none"
    shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker, "linestyle": line}
    axis.errorbar(marks[place], marks["value"], yerr=whiskers(marks), elinewidth=0.7, label=method, **shape)


def varied(marks: pd.DataFrame) -> list[str]:
    """The arguments of a method that differ among its marks."""
    names = sorted({name for args in marks["method_args"] for name in args})
    return [n for n in names if len({str(args.get(n)) for args in marks["method_args"]}) > 1]
