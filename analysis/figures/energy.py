"""Energy per decoded token, and its ratio to full's.

Joules of the whole device (idle share included) over the tokens of a batch, as the GPU's own counter gives it, summed
over ranks. The counter is coarse: short runs differ by more than their methods do, and there are no intervals, because
a run gives one reading.
"""

from __future__ import annotations

import json

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..inside import heading
from ..label import condition
from ..numbers import number, times
from ..study import Study
from ..style import COLUMN, MOST_ROWS, fewer, look, panels, paper


def draw(study: Study) -> Figure:
    """Bars, one panel per model, setting and timing task.

    Raises:
        ValueError: no cell has an energy.
    """
    found = study.points
    found = found[found["energy"].notna()]
    if found.empty:
        raise ValueError("needs a cell of decode_time that ended well on a GPU whose driver counts energy")
    found = found.assign(prompt=[args.get("prompt", 0) for args in found["task_args"]])
    found, note = fewer(found, most=MOST_ROWS)
    groups = [g.iloc[::-1] for _, g in found.groupby(["model", "setting", "prompt", "task_label"], sort=True)]
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 0.7 + 0.21 * max(map(len, groups)), note=note)
        for axis, group in pairs:
            _panel(axis, group)
    return figure


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    first, most = group.iloc[0], float(group["energy"].max())
    axis.barh(range(len(group)), group["energy"], color=[look(m).colour for m in group["method"]], height=0.7)
    for place, point in enumerate(group.to_dict("records")):
        said = f"{number(point['energy'], 3)} J" if point["is_dense"] else times(point["energy_ratio"])
        axis.annotate(said, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=6)
    dense = group.loc[group["is_dense"].astype(bool), "energy"]
    for value in dense:
        axis.axvline(value, color=look("full").colour, linestyle="--", linewidth=0.8)
    axis.set_yticks(range(len(group)), group["method_label"], fontsize=6)
    axis.set(xlim=(0, 1.05 * most), ylim=(-0.6, len(group) - 0.4))
    axis.set_xlabel(f"J per token ({'full has none' if dense.empty else 'dashed: full'})")
    args = {k: v for k, v in first["task_args"].items() if k in ("batch", "prompt")}
    said = json.dumps(args)[1:-1].replace('"', "")
    axis.set_title(heading(" ".join(text for text in (condition(first), said) if text)), fontsize=7)
