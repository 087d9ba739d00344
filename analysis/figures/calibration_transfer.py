"""Calibration transfer: what a method loses on one corpus when it was calibrated on another.

Rows: the corpus that a method's basis or thresholds come from; columns: the corpus it is measured on. Each field has
the score and, below, its difference to full on the same samples; full itself is the last row. Colour is the loss
(darker: less), as a share of full's score where less is better. If the rows of a panel are alike, it does not matter
where a calibration comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import corpus_of, heading, heat, ink
from ..label import condition, tell_apart
from ..numbers import number, signed
from ..study import Study
from ..style import COLUMN, panels, paper

HELD = ("corpus", "haystack")  # what a task calls the text it measures on
DENSE = "full (dense)"


def draw(study: Study) -> Figure:
    """One panel per model, setting, task and method with a calibration.

    Raises:
        ValueError: no method was calibrated on two corpora.
    """
    found = study.points
    found = found[~found["is_time"].astype(bool) & np.isfinite(found["value"])]
    found = found.assign(column=[_measured(args) for args in found["task_args"]])
    calibrated = found.assign(row=[_source(args) for args in found["method_args"]])
    calibrated = calibrated[(calibrated["row"] != "") & ~calibrated["is_dense"].astype(bool)]
    calibrated = calibrated.assign(who=calibrated["method_label"].map(_who), what=_what(calibrated))
    keys = ["model", "setting", "what", "who"]
    groups = [g for _, g in calibrated.groupby(keys, sort=True) if len(g["row"].unique()) > 1]
    if not groups:
        raise ValueError("needs a cell that ended well of a method calibrated on one corpus, and one on another")
    dense = found[found["is_dense"].astype(bool)]
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 2.3)
        for axis, group in pairs:
            _panel(axis, group, dense)
        figure.supxlabel("measured on", fontsize=8)
        figure.supylabel("calibrated on", fontsize=8)
    return figure


def _source(args: Mapping[str, Any]) -> str:
    names = dict.fromkeys(corpus_of(v) for v in args.values() if isinstance(v, Mapping) and v.get("corpus"))
    return "/".join(names)


def _measured(args: Mapping[str, Any]) -> str:
    return next((corpus_of({"corpus": args[name]}) for name in HELD if name in args), "")


def _who(label: str) -> str:
    """A method's label without its corpora."""
    return " ".join(word for word in label.split() if "corpus=" not in word)


def _what(found: pd.DataFrame) -> list[str]:
    rest = [{k: v for k, v in args.items() if k not in HELD} for args in found["task_args"]]
    return tell_apart([str(t) for t in found["task"]], rest)


def _panel(axis: Axes, group: pd.DataFrame, dense: pd.DataFrame) -> None:
    first = group.iloc[0]
    sign = 1.0 if first["better"] == "lower" else -1.0
    same = dense[(dense["model"] == first["model"]) & dense["task_label"].isin(group["task_label"])]
    rows, columns = sorted(group["row"].unique()), sorted(group["column"].unique())
    part = 1.0 if first["better"] == "higher" else group["value"] - group["change"]  # full on the same samples
    loss = group.assign(loss=sign * group["change"] / part).pivot_table(index="row", columns="column", values="loss")
    grid = np.vstack([loss.reindex(index=rows, columns=columns).to_numpy(dtype=float), np.zeros(len(columns))])
    image = heat(axis, grid)
    for point in [*group.to_dict("records"), *same.assign(row=DENSE).to_dict("records")]:
        place = (columns.index(point["column"]), [*rows, DENSE].index(point["row"]))
        text = number(point["value"]) + ("" if point["is_dense"] else f"\n({signed(point['change'])})")
        colour = ink(image, float(grid[place[::-1]]))
        axis.text(*place, text, ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(columns)), columns, fontsize=6.5)
    axis.set_yticks(range(len(rows) + 1), [*rows, DENSE], fontsize=6.5)
    axis.set_title(heading(condition(first), first["who"], first["what"]), fontsize=7)
