"""Stages of a sparse decode step: what choosing the rows costs, and what attending to them does.

Each stage as it was timed alone; the mark is the whole chain in one graph, and the line the fastest dense kernel of the
same shape. Stages alone add up to a little more or less than the chain, since caches are emptied before each.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench import decode
from ..study import Study
from ..style import COLUMN, legend, panels, paper

STAGES = {
    "loki_pipeline": ("lowrank_score", "select_topk", "gather_decode"),
    "loki_theta_pipeline": ("threshold_score", "gather_decode"),
}
COLOURS = {
    "lowrank_score": "#56B4E9",
    "threshold_score": "#009E73",
    "select_topk": "#E69F00",
    "gather_decode": "#0072B2",
}


def draw(study: Study) -> Figure:
    """One panel per run, device and shape.

    Raises:
        ValueError: no chain was timed beside its stages.
    """
    found = decode(study.bench)
    ours = found[found["baseline"].eq("")]
    groups = [rows for _, rows in ours.groupby(["run", "device", "context", "case"], sort=True) if _chains(rows)]
    if not groups:
        raise ValueError("needs a cell of `lacuna bench` with a pipeline and each of its stages")
    with paper():
        figure, pairs = panels(groups, 2, COLUMN, 1.35)
        for axis, rows in pairs:
            _panel(axis, rows)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _chains(rows: pd.DataFrame) -> list[str]:
    there = set(rows["op"])
    return [chain for chain, stages in STAGES.items() if {chain, *stages} <= there]


def _panel(axis: Axes, rows: pd.DataFrame) -> None:
    times, chains = rows.drop_duplicates("op").set_index("op")["median_ms"] * 1000, _chains(rows)
    for place, chain in enumerate(chains):
        left = 0.0
        for stage in STAGES[chain]:
            axis.barh(place, times[stage], left=left, height=0.6, color=COLOURS[stage], label=stage)
            left += float(times[stage])
        axis.plot([times[chain]], [place], color="#000000", marker="d", linestyle="none", label="whole chain")
    dense = rows["fastest"].iloc[0]
    if pd.notna(dense):
        axis.axvline(dense * 1000, color="#000000", linestyle="--", linewidth=0.9, label="fastest dense")
    axis.set_yticks(range(len(chains)), [chain.removesuffix("_pipeline") for chain in chains])
    axis.set(ylim=(-0.6, len(chains) - 0.4), xlim=(0, None), xlabel="µs per call")
    axis.set_title(f"{rows['case'].iloc[0]}: {rows['device'].iloc[0]}", fontsize=7)
