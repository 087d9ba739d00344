"""Speed-up of a decode step over the number of ranks that share the model, and what it would be if all were shared.

A step's time on one rank over its time on more, each the median of one run's steps; the dashed line is as many times as
there are ranks. Ranks of different machines or libraries are not told apart: collect runs of one machine.
"""

from __future__ import annotations

import json

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import heading
from ..numbers import number
from ..study import Study
from ..style import COLUMN, MOST_LINES, fewer, legend, look, panels, paper

SHOWN = ("batch", "prompt", "engine", "layers")


def draw(study: Study) -> Figure:
    """A line per method over the ranks, one panel per model and timing task.

    Raises:
        ValueError: no method was timed on one rank and on more.
    """
    found = _scaled(study.cells)
    if found.empty:
        raise ValueError(
            "needs a cell of decode_time that ended well on one rank, and the same on more (--set ranks=2)"
        )
    found, note = fewer(found, most=MOST_LINES)
    groups = [group for _, group in found.groupby(["model_label", "about"], sort=True)]
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 2.4, note=note)
        for axis, group in pairs:
            _panel(axis, group)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _scaled(cells: pd.DataFrame) -> pd.DataFrame:
    """Cells whose method and task were timed on one rank too, with `times`: the gain over it."""
    if "decode_ms_median" not in cells:
        return cells.iloc[:0]
    timed = cells[cells["status"].eq("ok") & cells["decode_ms_median"].notna()]
    timed = timed.assign(about=_about(timed))
    keys = ["model_label", "method", "method_label", "about"]
    timed = timed.sort_values("decode_ms_median", kind="stable").drop_duplicates([*keys, "ranks"])
    alone = timed[timed["ranks"].eq(1)][[*keys, "decode_ms_median"]].rename(columns={"decode_ms_median": "alone"})
    found = timed.merge(alone, on=keys)
    found = found.assign(times=found["alone"] / found["decode_ms_median"])
    return found[found.groupby(keys)["ranks"].transform("nunique") > 1]


def _about(timed: pd.DataFrame) -> list[str]:
    columns = [f"task.{name}" for name in SHOWN if f"task.{name}" in timed]
    rows = timed[columns].to_dict("records")
    return [json.dumps({str(k).removeprefix("task."): _plain(v) for k, v in row.items()}) for row in rows]


def _plain(value: object) -> object:
    """Whole numbers without a point: a column with gaps has none."""
    return int(value) if isinstance(value, float) and value.is_integer() else str(value)


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    ranks = sorted(int(count) for count in group["ranks"].unique())
    axis.plot(ranks, ranks, color="#888888", linestyle="--", linewidth=0.8, zorder=0)
    for (method, label), marks in group.groupby(["method", "method_label"], sort=True):
        mine, line = look(str(method)), marks.sort_values("ranks")
        axis.plot(line["ranks"], line["times"], color=mine.colour, marker=mine.marker, markersize=3.5, label=str(label))
        for point in line.to_dict("records"):
            said = f"{number(point['decode_ms_median'], 3)} ms"
            axis.annotate(said, (point["ranks"], point["times"]), (3, -8), textcoords="offset points", fontsize=5)
    axis.set_xscale("log", base=2)
    axis.set_xlim(ranks[0] / 1.1, ranks[-1] * 1.25)
    axis.set_xticks(ranks, [f"{count}" for count in ranks])
    axis.minorticks_off()
    axis.set(ylim=(0, None), xlabel="ranks", ylabel="times one rank (dashed: ideal)")
    said = ", ".join(f"{k}={v}" for k, v in json.loads(group["about"].iloc[0]).items())
    axis.set_title(heading(f"{group['model_label'].iloc[0]} {said}"), fontsize=7)
