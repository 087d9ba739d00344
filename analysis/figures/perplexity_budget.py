"""Perplexity against the budget that was asked for: one panel per model and argument of the methods.

The argument that varies (k, a window) is on a logarithmic axis, or a plain one where it may be nothing; a share and a
count are never on one axis, because they mean other budgets. Bars are 95% bootstrap intervals over windows; the dashed
line is full on the same windows. A method of which two arguments vary has a line for each value of the other one.
"""

from __future__ import annotations

import itertools
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..label import condition
from ..marks import level, varied
from ..study import Study
from ..style import dealt, legend, look, panels, paper, whiskers

PANEL = ["model", "setting", "task_label"]
LINES = ("-", ":", "--", "-.")
WIDE = 28  # characters beside or above a panel


def draw(study: Study) -> Figure:
    """One panel per model, setting, text and argument.

    Raises:
        ValueError: no method has a perplexity at two values of an argument.
    """
    found = study.points
    found = found[(found["heading"].str.startswith("perplexity")) & np.isfinite(found["value"])]
    dense = found["is_dense"].astype(bool)
    parts = [_budgets(marks) for _, marks in found[~dense].groupby(["method", *PANEL], sort=True)]
    sparse = pd.concat(parts) if parts else found.iloc[:0]
    if sparse.empty:
        raise ValueError("needs a cell of the task perplexity that ended well, at two values of a budget or more")
    groups, note = dealt(sparse, [*PANEL, "argument"])
    with paper():
        figure, pairs = panels(groups, min(3, len(sparse["argument"].unique())), 2.5, 2.2, note=note)
        for axis, group in pairs:
            same = (found[PANEL] == group[PANEL].iloc[0]).all(axis=1)
            _panel(axis, group, found[dense & same])
        level([axis for axis, _ in pairs])
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _budgets(marks: pd.DataFrame) -> pd.DataFrame:
    # the argument with the most values is the axis, the others tell lines apart
    args, names = list(marks["method_args"]), varied(marks)
    numeric = {n: {a[n] for a in args} for n in names if all(isinstance(a.get(n), (int, float)) for a in args)}
    if not numeric:
        return marks.iloc[:0]
    name = max(sorted(numeric), key=lambda n: len(numeric[n]))
    kinds = [f"{name} ({'count' if isinstance(a[name], int) else 'share'})" for a in args]
    rest = [" ".join(f"{n}={a.get(n)}" for n in names if n != name) for a in args]
    return marks.assign(argument=kinds, budget=[a[name] for a in args], rest=rest)


def _panel(axis: Axes, sparse: pd.DataFrame, dense: pd.DataFrame) -> None:
    first = sparse.iloc[0]
    for value in dense["value"]:
        axis.axhline(value, color=look("full").colour, linestyle="--", linewidth=0.9, label="full (dense)")
    for method, whole in sparse.groupby("method", sort=True):
        for line, (rest, marks) in zip(itertools.cycle(LINES), whole.groupby("rest", sort=True), strict=False):
            _line(axis, f"{method} {rest}".strip(), line, marks.sort_values("budget"))
    budgets = sorted(sparse["budget"].unique())
    if budgets[0] > 0:
        axis.set_xscale("log", base=2)
    axis.set_xticks(budgets, [f"{b:.4g}" for b in budgets])
    axis.minorticks_off()
    axis.set(xlabel=first["argument"], ylabel=f"{fill(first['heading'], WIDE)}\n(lower is better)")
    axis.set_title(fill(condition(first), WIDE + 8))


def _line(axis: Axes, label: str, line: str, marks: pd.DataFrame) -> None:
    mine = look(str(marks["method"].iloc[0]))
    axis.errorbar(
        marks["budget"],
        marks["value"],
        yerr=whiskers(marks),
        color=mine.colour,
        marker=mine.marker,
        linestyle=line,
        elinewidth=0.7,
        label=label,
    )
