"""Speed-up of attention kernels against the rows of the cache, a line for each batch, with what bytes allow.

Medians of `lacuna bench --rows ... --batch ...`. Solid: a whole step (choose the rows, attend to them) over the fastest
dense kernel of the same shape and run; below the grey line, in the shaded part, it loses. Dotted: the bound, bytes of
dense attention over those of the step. Crosses: the naive kernel (repeat K and V, multiply, softmax, multiply) over the
fastest, of the largest batch that it could hold.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench import decode
from ..study import Study
from ..style import COLUMN, DENSE_COLOUR, GREY, MARKERS, PALETTE, sheet

KEYS = ["run", "device", "op", "heads", "groups", "part"]
FEWEST = 3  # lengths that make a panel


def draw(study: Study) -> Figure:
    """One panel for each pipeline, heads, budget and run.

    Raises:
        ValueError: no pipeline was timed on a grid of three lengths.
    """
    found = decode(study.bench)
    found = found[found["op"].str.endswith("_pipeline") & found["gain"].notna()]
    found = found.assign(part=found["case"].str.extract(r"_1of(\d+)", expand=False))
    found = found[found["part"].notna()]
    lengths = found.groupby(KEYS)["context"].transform("nunique")
    groups = [rows for _, rows in found[lengths >= FEWEST].groupby(KEYS, sort=True)]
    if not groups:
        raise ValueError("needs a cell of `lacuna bench` with a pipeline at three or more numbers of rows")
    return sheet(groups, 2, COLUMN, 2.4, _panel)


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    first, rows = rows.iloc[0], rows.sort_values("context")
    for place, (batch, line) in enumerate(rows.groupby("batch", sort=True)):
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
        axis.plot(line["context"], line["gain"], color=colour, marker=marker, label=f"batch {batch:g}")
    bound = rows.drop_duplicates("context")
    axis.plot(bound["context"], bound["bound"], color=DENSE_COLOUR, linestyle=":", label="bound of its bytes")
    naive = rows[rows["naive"].notna()].sort_values("batch").drop_duplicates("context", keep="last")
    naive = naive.assign(share=naive["fastest"] / naive["naive"]).sort_values("context")
    axis.plot(naive["context"], naive["share"], color=GREY, marker="x", linestyle="--", label="naive")
    axis.axhline(1.0, color="#777777", linewidth=0.9, zorder=0)
    axis.axhspan(1e-3, 1.0, color=GREY, alpha=0.12, linewidth=0, zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    low = min(1.0, *rows["gain"], *naive["share"])
    axis.set_ylim(0.8 * low, 1.25 * max(1.0, *rows["bound"], *rows["gain"]))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.xaxis.set_major_formatter(lambda value, _: _rows(value))
    axis.minorticks_off()
    axis.set(xlabel="rows in the cache", ylabel="over the fastest dense kernel")
    name = str(first["op"]).removesuffix("_pipeline")
    axis.set_title(f"{name}, heads {first['heads']:g}/{first['groups']:g}, 1/{first['part']} kept", fontsize=7)


def _rows(value: float) -> str:
    thousands = value / 1024
    return f"{value:g}" if thousands < 1 else f"{thousands:g}k" if thousands < 1024 else f"{thousands / 1024:g}M"
