"""Speed-up of attention kernels against context, over the fastest dense kernel, with what bytes allow and break-even.

Medians of `lacuna bench`, of calls that were verified in the same run. A mark is a whole step (choose the rows, attend
to them) over the fastest dense kernel of the same shape, which its row names; the bar beside it is the bound, bytes of
dense attention over those of the step. The grey line is break-even. Each row also says how much slower the naive kernel
is (repeat K and V, multiply, softmax, multiply): speed-ups over it are that much larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench import decode
from ..numbers import times
from ..study import Study
from ..style import COLUMN, look, sheet


def draw(study: Study) -> Figure:
    """One panel per run and device.

    Raises:
        ValueError: no chain of operations was timed beside dense attention.
    """
    found = decode(study.bench)
    found = found[found["op"].str.endswith("_pipeline") & found["gain"].notna()]
    if found.empty:
        raise ValueError("needs a cell of `lacuna bench` with a pipeline and dense attention of the same case")
    groups = [rows for _, rows in found.groupby(["run", "device"], sort=True)]
    return sheet(groups, 1, 1.35 * COLUMN, 0.7 + 0.34 * max(len(g["case"].unique()) for g in groups), _panel)


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    shapes = rows.drop_duplicates("case").sort_values(["context", "batch", "groups"], ascending=False)
    place = {case: i for i, case in enumerate(shapes["case"])}
    for op, marks in rows.groupby("op", sort=True):
        name = str(op).removesuffix("_pipeline")
        mine, at = look(name), [place[case] for case in marks["case"]]
        shape: dict[str, Any] = {"color": mine.colour, "linestyle": "none"}
        axis.plot(marks["gain"], at, marker=mine.marker, label=f"{name}: measured", **shape)
        axis.plot(marks["bound"], at, marker="|", markersize=9, label=f"{name}: bound of its bytes", **shape)
    axis.axvline(1.0, color="#777777", linewidth=0.9, zorder=0)
    axis.set_yticks(range(len(shapes)), [_said(shape) for shape in shapes.to_dict("records")], fontsize=6)
    axis.set(xlim=(0, 1.05 * float(rows[["gain", "bound"]].max().max())), ylim=(-0.6, len(shapes) - 0.4))
    axis.set(xlabel="speed-up over the fastest dense kernel")
    axis.set_title(str(rows["device"].iloc[0]), fontsize=7)


def _said(shape: Mapping[Any, Any]) -> str:
    heads = f"{shape['context'] / 1024:g}k, batch {shape['batch']:g}, heads {shape['heads']:g}/{shape['groups']:g}"
    keys = str(shape["case"]).partition("_keys-")[2]
    heads += f", keys of {keys}" if keys else ""
    naive = "not timed" if pd.isna(shape["naive"]) else f"{times(shape['naive'] / shape['fastest'])} slower"
    return f"{heads}\n{shape['fastest_name']}; naive {naive}"
