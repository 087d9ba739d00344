"""Roofline: work done a second against work per byte, for every operation and baseline that was timed.

The slanted line is the measured bandwidth of a device copy; left of the ridge nothing can be above it, and decode
attention lies there. Work and bytes are what the operation has to do and to read, not what it did: a mark far below the
line loses time, not bytes. Some dense reads come out slightly above the line, since a copy also writes. What moves
fewer than 10 MB is left out beside what moves more: it takes the time of a launch, whatever it does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..study import Study
from ..style import COLUMN, legend, nth, panels, paper

LEAST_BYTES = 10e6  # two microseconds of a fast GPU's memory, less than a launch
BEYOND = 3  # times the fastest: the line of the bytes goes no higher


def draw(study: Study) -> Figure:
    """One panel per run and device.

    Raises:
        ValueError: no operation was timed with its work and bytes.
    """
    bench = study.bench
    found = bench[(bench["status"] == "ok") & (bench["median_ms"] > 0) & (bench["bytes"] > 0) & (bench["flops"] > 0)]
    if found.empty:
        raise ValueError("needs a cell of `lacuna bench` that ended well, with work and bytes")
    large = found["bytes"] >= LEAST_BYTES
    found = found[large] if large.any() else found
    found = found.assign(intensity=found["flops"] / found["bytes"], speed=found["flops"] / found["median_ms"] / 1e9)
    groups = [rows for _, rows in found.groupby(["run", "device"], sort=True)]
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 2.6)
        ops = sorted(found["op"].unique())
        for axis, rows in pairs:
            _panel(axis, rows, ops)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _panel(axis: Axes, rows: pd.DataFrame, ops: Sequence[str]) -> None:
    for op, marks in rows.groupby("op", sort=True):
        ours = marks["baseline"].eq("")
        mine = nth(ops.index(str(op)))
        for kept, fill, tail in ((ours, "full", ""), (~ours, "none", " (baselines)")):
            if kept.any():
                axis.plot(marks.loc[kept, "intensity"], marks.loc[kept, "speed"], color=mine.colour, marker=mine.marker,
                          fillstyle=fill, linestyle="none", label=f"{op}{tail}")  # fmt: skip
    ceiling = float(rows["ceiling_gb_s"].median())
    if ceiling > 0:
        across = np.array([rows["intensity"].min() / 1.5, rows["intensity"].max() * 1.5])
        label = f"device copy, {ceiling / 1000:.2f} TB/s"
        axis.plot(across, across * ceiling / 1000, color="#777777", linewidth=1.0, zorder=0, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(top=BEYOND * float(rows["speed"].max()))
    wide = rows["intensity"].max() > 1000 * rows["intensity"].min()
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()
    axis.set(xlabel="work per byte (flop/B)", ylabel="work done (Tflop/s)")
    axis.set_title(str(rows["device"].iloc[0]), fontsize=7)
