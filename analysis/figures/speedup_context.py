"""Speed-up over full against context, with the bound that bytes set, and break-even.

Solid: median decode time of full over that of the method; bars are 95% bootstrap intervals over steps. Dotted, in the
same colour: the bound, full's bytes over the method's from the ledger, which a step would reach if it were nothing but
reading the cache. The grey line is break-even; a ring marks the context from which a method is faster on.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..label import condition
from ..marks import level
from ..numbers import times
from ..study import Study
from ..style import (
    COLUMN,
    MOST_DEALT,
    MOST_PANELS,
    MOST_ROWS,
    dealt,
    fewer,
    filled,
    legend,
    look,
    panels,
    paper,
    whiskers,
)


def draw(study: Study) -> Figure:
    """One panel per model, setting and batch.

    Raises:
        ValueError: no method has a speed-up.
    """
    found = study.points
    found = found[found["is_time"].astype(bool) & found["change"].notna()]
    found = found.assign(
        context=[args.get("prompt", math.nan) for args in found["task_args"]],
        batch=[args.get("batch", 1) for args in found["task_args"]],
    )
    found = found[found["context"].notna()]
    if found.empty:
        raise ValueError("needs a cell of decode_time that ended well, of a sparse method and of full")
    by = ["model", "setting", "batch"]
    if len(found["context"].unique()) > 1:
        groups, note = dealt(found, by, "method_label")
        return _lines(groups, note)
    found, note = fewer(found, most=MOST_ROWS)
    return _dots([g for _, g in found.groupby(by, sort=True)], note)


def break_even(contexts: list[float], speeds: list[float]) -> float | None:
    """The context at which the line crosses 1 for good, linear in the logarithm; None if it does not."""
    pairs = list(zip(contexts, speeds, strict=True))
    for (a, low), (b, high) in reversed(list(itertools.pairwise(pairs))):
        if low < 1 <= high:
            return float(a * (b / a) ** ((1 - low) / (high - low)))
        if high < 1:
            return None
    return None


def _lines(groups: list[pd.DataFrame], note: str) -> Figure:
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 2.4, max(MOST_PANELS, min(len(groups), MOST_DEALT)), note)
        for axis, group in pairs:
            _panel(axis, group)
        level([axis for axis, _ in pairs])
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _dots(groups: list[pd.DataFrame], note: str) -> Figure:
    # at one context, lines would be marks above each other
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 0.7 + 0.21 * max(map(len, groups)), note=note)
        for axis, group in pairs:
            _dot_panel(axis, group.iloc[::-1].reset_index(drop=True))
    return figure


def _dot_panel(axis: Axes, group: pd.DataFrame) -> None:
    bars = whiskers(group[["change", "change_low", "change_high"]].set_axis(["value", "low", "high"], axis=1))
    for place, point in enumerate(group.to_dict("records")):
        mine, speed = look(point["method"]), [point["change"]]
        axis.errorbar(speed, [place], xerr=bars[:, [place]], color=mine.colour, marker=mine.marker, markersize=3.5)
        if point["bytes_ratio"] > 0:
            bound = 1 / point["bytes_ratio"]
            axis.plot([point["change"], bound], [place, place], color=mine.colour, linestyle=":", zorder=0)
            axis.plot([bound], [place], color=mine.colour, marker="|", markersize=9)
            said = f"{times(point['change'])} of {times(bound)}"
            axis.annotate(said, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6)
    axis.axvline(1.0, color="#777777", linewidth=0.9, zorder=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_yticks(range(len(group)), group["method_label"], fontsize=6)
    axis.set(ylim=(-0.6, len(group) - 0.4), xlabel="speed-up over full (|: bound)")
    axis.set_title(f"{_heading(group.iloc[0])} {group['context'].iloc[0]:g} tokens".strip(), fontsize=7)


def _heading(first: pd.Series[Any]) -> str:
    batch = f"batch {first['batch']}" if first["batch"] != 1 else ""
    return " ".join(text for text in (condition(first), batch) if text)


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    first, contexts = group.iloc[0], sorted(group["context"].unique())
    for label, marks in group.groupby("method_label", sort=True):
        _line(axis, str(label), marks.sort_values("context"))
    axis.axhline(1.0, color="#777777", linewidth=0.9, zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.set_xticks(contexts, [f"{c:g}" for c in contexts])
    axis.set_xlim(contexts[0] / 1.3, contexts[-1] * 1.3)
    axis.minorticks_off()
    axis.set(xlabel="context (tokens in the prompt)", ylabel="speed-up over full")
    axis.set_title(_heading(first))


def _line(axis: Axes, label: str, marks: pd.DataFrame) -> None:
    mine, density = look(str(marks["method"].iloc[0])), marks["density"].iloc[-1]
    fill = filled(mine.colour, float(density))
    speeds = marks[["change", "change_low", "change_high"]].set_axis(["value", "low", "high"], axis=1)
    axis.errorbar(
        marks["context"],
        speeds["value"],
        yerr=whiskers(speeds),
        color=mine.colour,
        marker=mine.marker,
        markerfacecolor=fill,
        label=label,
    )
    bound = marks[marks["bytes_ratio"] > 0]
    axis.plot(bound["context"], 1 / bound["bytes_ratio"], color=mine.colour, linestyle=":", marker="_", markersize=9)
    crossing = break_even(list(marks["context"]), list(marks["change"]))
    if crossing is not None:
        axis.plot([crossing], [1.0], marker="o", markersize=8, markerfacecolor="none", color=mine.colour)
