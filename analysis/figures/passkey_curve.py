"""Retrieval against context: the share of planted facts that a method still finds as the prompt grows.

Wilson's 95% interval of the facts of each length, all depths together; budgets of one method share colour and marker,
differ in line, and the emptier the mark the smaller the budget. Tasks needle, passkey and their kin: any whose samples
carry length and score.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import stats
from ..label import in_order
from ..study import Study
from ..style import COLUMN, MOST_PANELS, fewer, filled, look, sheet, whiskers

NAMES = ("model_label", "setting", "task_label", "method", "method_label")
LINES = ("-", ":", "--", "-.")


def draw(study: Study) -> Figure:
    """One panel per model, setting and task.

    Raises:
        ValueError: no task has samples with a score at two lengths.
    """
    cells, note = fewer(_planted(study.cells))
    parts = in_order(cells, ["model_label", "setting", "task_label"])
    groups = [_shares(rows) for rows in parts[:MOST_PANELS]] + parts[MOST_PANELS:]
    if not any(len(rows["length"].unique()) > 1 for rows in groups[:MOST_PANELS]):
        raise ValueError("needs a cell of a task with planted facts (needle, passkey) that ended well, at two lengths")
    return sheet(groups, 2, COLUMN, 2.3, _panel, note)


def _planted(cells: pd.DataFrame) -> pd.DataFrame:
    planted = [bool(found) and {"length", "score"} <= found[0].keys() for found in cells["samples"]]
    good = cells[(cells["status"] == "ok") & pd.Series(planted, index=cells.index, dtype=bool)]
    good = good.assign(order=good["method"] != "full")
    return good.sort_values(["order", "method", "density"], ascending=[True, True, False])


def _shares(cells: pd.DataFrame) -> pd.DataFrame:
    scores, density = defaultdict[tuple[Any, ...], list[float]](list), defaultdict[Any, list[float]](list)
    for cell in cells.to_dict("records"):
        who, asked = tuple(cell[name] for name in NAMES), cell.get("task.length")
        density[who[-1]].append(cell["density"])
        for sample in cell["samples"]:
            if {"length", "score"} <= sample.keys():
                length = sample["length"] if asked is None or pd.isna(asked) else asked
                scores[(*who, float(length))].append(float(sample["score"]))
    rows = [{**dict(zip((*NAMES, "length"), key, strict=True)), **_interval(values)} for key, values in scores.items()]
    found = pd.DataFrame(rows, columns=[*NAMES, "length", "value", "low", "high"])
    return found.assign(density=[float(np.mean(density[label])) for label in found["method_label"]])


def _interval(values: list[float]) -> dict[str, float]:
    one = stats.interval(np.array(values)[:, None], stats.mean)
    return {"value": one.value, "low": one.low, "high": one.high}


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    lengths, drawn = sorted(rows["length"].unique()), Counter[str]()
    for label, marks in rows.groupby("method_label", sort=False):
        method = str(marks["method"].iloc[0])
        mine, line = look(method), marks.sort_values("length")
        share = line["density"].iloc[0]
        fill = filled(mine.colour, float(share))
        shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker, "markerfacecolor": fill}
        shape["linestyle"] = LINES[drawn[method] % len(LINES)]
        drawn[method] += 1
        axis.errorbar(line["length"], line["value"], yerr=whiskers(line), elinewidth=0.7, label=str(label), **shape)
    axis.set_xscale("log", base=2)
    shown = lengths[:: -(-len(lengths) // 8)]
    axis.set_xticks(shown, [f"{n:g}" for n in shown])
    axis.minorticks_off()
    axis.set(ylim=(-0.03, 1.05), xlabel="prompt's length (tokens)", ylabel=f"{rows['task_label'].iloc[0]}: share found")
    first = rows.iloc[0]
    axis.set_title(" ".join(text for text in (first["model_label"], first["setting"]) if text), fontsize=7)
