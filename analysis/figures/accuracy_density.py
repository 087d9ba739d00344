"""Quality against measured density: one panel per task, with the dense model's line and interval.

Each mark is a method at one budget, at the density that was measured, not asked for. Bars and the band around the
dense line are 95% bootstrap intervals over samples; marks of one method are joined where one budget varies. Both
intervals hold the same easy and hard samples: whether a method differs from dense is in the table's paired
differences, not in the overlap of bars and band.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..label import condition
from ..style import legend, look, panels, paper
from ..style import whiskers as lengths
from ..study import Study


def draw(study: Study) -> Figure:
    """One panel per model, setting and task that is not a latency.

    Raises:
        ValueError: no cell that ended well has a score and a measured density.
    """
    found = study.points
    found = found[~found["is_time"].astype(bool) & np.isfinite(found["value"]) & found["density"].notna()]
    if found["is_dense"].all():
        raise ValueError("needs a cell that ended well, of a sparse method and a task with a score, with its density")
    groups = [g for _, g in found.groupby(["model", "setting", "task_label"], sort=True)]
    with paper():
        figure, pairs = panels(groups, min(3, len(found["task_label"].unique())), 2.5, 2.2)
        for axis, group in pairs:
            _panel(axis, group)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    first = group.iloc[0]
    for _, dense in group[group["is_dense"].astype(bool)].iterrows():
        _dense(axis, dense)
    for method, marks in group[~group["is_dense"].astype(bool)].groupby("method", sort=True):
        _method(axis, str(method), marks.sort_values("density"))
    axis.set(xlim=(0, 1.03), xlabel="density (measured)", ylabel=f"{first['heading']}\n({first['better']} is better)")
    axis.set_title(condition(first))


def _dense(axis: Axes, dense: pd.Series[Any]) -> None:
    axis.axhline(dense["value"], color=look("full").colour, linestyle="--", linewidth=0.9, label="full (dense)")
    axis.axhspan(dense["low"], dense["high"], color=look("full").colour, alpha=0.08, linewidth=0)


def _method(axis: Axes, method: str, marks: pd.DataFrame) -> None:
    mine = look(method)
    # with two arguments that vary a line would join marks that are no curve
    line = "-" if len(_varied(marks)) <= 1 else "none"
    shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker, "linestyle": line}
    axis.errorbar(marks["density"], marks["value"], yerr=lengths(marks), elinewidth=0.7, label=method, **shape)


def _varied(marks: pd.DataFrame) -> set[str]:
    names = {name for args in marks["method_args"] for name in args}
    return {n for n in names if len({str(args.get(n)) for args in marks["method_args"]}) > 1}
