"""Tensor parallelism: decode time over ranks, against the fewest ranks that were timed.

Above the dashed line nothing is lost; a value below 1 says that more ranks were slower. Median times of the same
method, task and dtype at each number of ranks; bars are 95% bootstrap intervals over steps. Records of
several sweeps (one per number of ranks) make this figure when they are in one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import stats
from ..headlines import headline
from ..study import Study
from ..style import COLUMN, fewer, filled, look, sheet, whiskers

SAME = ("model_label", "dtype", "device", "prefill", "query_aware", "task", "task_id")


def draw(study: Study) -> Figure:
    """One panel per model, dtype, device and timing task.

    Raises:
        ValueError: no method was timed at two numbers of ranks.
    """
    found = [line for rows in _same(study.cells) for line in _scaled(rows)]
    if not found:
        raise ValueError("needs a cell of decode_time that ended well at two numbers of ranks or more")
    table, note = fewer(pd.DataFrame(found))
    groups = [g for _, g in table.groupby("panel", sort=True)]
    return sheet(groups, 2, COLUMN, 2.4, _panel, note)


def _same(cells: pd.DataFrame) -> list[pd.DataFrame]:
    times = [(head := headline(task)) is not None and head.is_time for task in cells["task"]]
    good = cells[pd.Series(times, index=cells.index, dtype=bool) & (cells["status"] == "ok")]
    groups = [g for _, g in good.groupby([*SAME, "method_label"], sort=True)]
    return [g for g in groups if len(g["ranks"].unique()) > 1]


def _scaled(rows: pd.DataFrame) -> list[dict[str, Any]]:
    cells = sorted(rows.to_dict("records"), key=lambda cell: int(cell["ranks"]))
    first = cells[0]
    head = headline(first["task"])
    assert head is not None, "_same keeps timing tasks only"
    base, found = head.values(first["samples"]), []
    for cell in cells:
        speed = stats.ratio(base, head.values(cell["samples"]), head.statistic)
        band = {"value": speed.value, "low": speed.low, "high": speed.high}
        if cell is first:
            band = dict.fromkeys(band, 1.0)
        found.append({**band, **_who(cell), "ranks": int(cell["ranks"]), "fewest": int(first["ranks"])})
    return found


def _who(cell: Mapping[Any, Any]) -> dict[str, Any]:
    args = json.loads(cell["cell_json"])["task"]["args"]
    said = ", ".join(f"{k} {args[k]}" for k in ("batch", "prompt") if k in args)
    panel = f"{cell['model_label']} {cell['dtype']} {cell['device']}\n{cell['task']} {said}".strip()
    names = ("method", "method_label", "density")
    return {"panel": panel, **{name: cell[name] for name in names}}


def _panel(axis: Axes, group: pd.DataFrame) -> None:
    ranks, fewest = sorted(group["ranks"].unique()), int(group["fewest"].min())
    for label, marks in group.groupby("method_label", sort=True):
        mine, density = look(str(marks["method"].iloc[0])), marks["density"].iloc[0]
        fill = filled(mine.colour, float(density))
        bars = whiskers(marks)
        shape: dict[str, Any] = {"color": mine.colour, "marker": mine.marker}
        axis.errorbar(marks["ranks"], marks["value"], yerr=bars, markerfacecolor=fill, label=str(label), **shape)
    axis.plot(ranks, [r / fewest for r in ranks], color="#777777", linestyle="--", linewidth=0.9, label="ideal")
    axis.set_xscale("log", base=2)
    axis.set_xticks(ranks, [str(r) for r in ranks])
    axis.minorticks_off()
    axis.set(
        ylim=(0, None), xlabel="ranks (tensor parallel)", ylabel=f"speed-up over {fewest} rank{'s' * (fewest > 1)}"
    )
    axis.set_title(str(group["panel"].iloc[0]), fontsize=7)
