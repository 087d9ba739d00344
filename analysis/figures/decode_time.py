"""Time per decoded token against context: medians with intervals, and the dense baseline by name.

Median time of a decode step; bars are 95% bootstrap intervals over the steps of one run, so they do not hold the
difference between runs or machines. Speed-ups refer to the method full; below 1 is slower than dense.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..label import condition
from ..numbers import number, times
from ..study import Study
from ..style import COLUMN, MOST_LINES, MOST_ROWS, fewer, filled, legend, look, panels, paper, whiskers

CONTEXT = "prompt"  # the argument of a timing task that says how many tokens are in the cache


def draw(study: Study) -> Figure:
    """A dot per method at one context, or lines over several; one panel per model, setting and other argument.

    Raises:
        ValueError: no cell that ended well has a latency.
    """
    found = study.points
    found = found[found["is_time"].astype(bool) & found["value"].notna()]
    if found.empty:
        raise ValueError("needs a cell of a timing task (decode_time) that ended well")
    found = found.assign(context=[args.get(CONTEXT) for args in found["task_args"]], rest=_rest(found))
    several = len(found["context"].unique()) > 1
    found, note = fewer(found, most=MOST_LINES if several else MOST_ROWS)
    groups = [g for _, g in found.groupby(["model", "setting", "task", "rest"], sort=True)]
    with paper():
        return (_lines if several else _dots)(groups, note)


def _rest(found: pd.DataFrame) -> list[str]:
    others = [{k: v for k, v in args.items() if k != CONTEXT} for args in found["task_args"]]
    return [json.dumps(args, sort_keys=True) for args in others]


def _dots(groups: list[pd.DataFrame], note: str) -> Figure:
    most = max(map(len, groups))
    figure, pairs = panels(groups, 2, COLUMN, 0.7 + 0.21 * most, note=note)
    for axis, group in pairs:
        _dot_panel(axis, group.iloc[::-1].reset_index(drop=True))
    return figure


def _dot_panel(axis: Axes, group: pd.DataFrame) -> None:
    widths, axis_end = whiskers(group), 1.06 * float(group[["value", "high"]].max().max())
    for row, point in group.iterrows():
        mine, place = look(point["method"]), int(str(row))
        bar = widths[:, [place]]
        axis.errorbar([point["value"]], [place], xerr=bar, color=mine.colour, marker=mine.marker, markersize=3.5)
        axis.annotate(_said(point), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6)
    for value in group.loc[group["is_dense"].astype(bool), "value"]:
        axis.axvline(value, color=look("full").colour, linestyle="--", linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(group)), group["method_label"], fontsize=6)
    axis.set(xlim=(0, axis_end), ylim=(-0.6, len(group) - 0.4), xlabel=f"{group['heading'].iloc[0]} (dashed: full)")
    axis.set_title(_heading(group), fontsize=7)


def _said(point: pd.Series[Any]) -> str:
    return f"{number(point['value'], 3)} ms" if point["is_dense"] else times(point["change"])


def _lines(groups: list[pd.DataFrame], note: str) -> Figure:
    figure, pairs = panels(groups, 2, COLUMN, 2.4, note=note)
    for axis, group in pairs:
        contexts = sorted(group["context"].unique())
        for (_, label), marks in group.groupby(["method", "method_label"], sort=True):
            _line(axis, str(label), marks.sort_values("context"), contexts)
        axis.set_xscale("log", base=2)
        axis.set_xticks(contexts, [f"{c:g}" for c in contexts])
        axis.minorticks_off()
        axis.set(ylim=(0, None), xlabel="context (tokens in the prompt)", ylabel="decode ms per step")
        axis.set_title(_heading(group), fontsize=7)
    legend(figure, [axis for axis, _ in pairs])
    return figure


def _line(axis: Axes, label: str, marks: pd.DataFrame, contexts: list[float]) -> None:
    last = marks.iloc[-1]
    mine, dense = look(last["method"]), bool(last["is_dense"])
    text = f"{label} (dense)" if dense else f"{label}: {times(last['change'])} at {last['context']:g}"
    whole = marks.set_index("context")[["value", "low", "high"]].reindex(contexts)  # a cell that failed is a gap
    axis.errorbar(
        whole.index,
        whole["value"],
        yerr=whiskers(whole),
        color=mine.colour,
        marker=mine.marker,
        markerfacecolor=filled(mine.colour, 1.0 if dense else float(last["density"])),
        linestyle="--" if dense else "-",
        label=text,
    )


def _heading(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    args = json.loads(first["rest"])
    if len(group["context"].unique()) == 1 and first["context"] is not None:
        args[CONTEXT] = first["context"]
    said = textwrap.wrap(", ".join(f"{k}={v}" for k, v in args.items()), 34)
    return "\n".join(text for text in (condition(first), *said) if text)
