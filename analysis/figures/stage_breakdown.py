"""Stages of a sparse decode step: what choosing the rows costs, and what attending to them does.

Each stage as it was timed alone; the mark is the whole chain in one graph, and the line the fastest dense kernel of the
same shape. Stages alone add up to a little more or less than the chain, since caches are emptied before each. Whole
steps of the task `decode_time` on a GPU have panels of their own: busy times of their kernels by purpose, from a
profile, and the median step (mark); what the mark is beyond the bar is gaps. In records before
2026-11-30 what overlapped counts twice.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench import decode
from ..inside import MOST_LINES, heading, inside, wheres
from ..study import Study
from ..style import COLUMN, legend, panels, paper

STAGES = {
    "loki_pipeline": ("lowrank_score", "select_topk", "gather_decode"),
    "loki_theta_pipeline": ("theta_rows", "gather_decode"),
}
COLOURS = {
    "lowrank_score": "#56B4E9",
    "theta_rows": "#009E73",
    "select_topk": "#E69F00",
    "gather_decode": "#0072B2",
}
OF_STEPS = {
    "append": "#F0E442",
    "score": "#56B4E9",
    "select": "#E69F00",
    "gather": "#0072B2",
    "whole": "#332288",
    "attend": "#009E73",
    "merge": "#CC79A7",
    "collective": "#D55E00",
    "matmul": "#777777",
    "other": "#cccccc",
}
ALIKE = ("run", "device", "context", "case")
HEIGHT = 1.35  # inches of a panel with two bars
NAME = 32  # letters of a line of a method's name: a longer one would take the room of the bars


def draw(study: Study) -> Figure:
    """One panel per run, device and shape, and one per model and setting of whole steps.

    Raises:
        ValueError: no chain was timed beside its stages, and no step was profiled.
    """
    found = decode(study.bench)
    ours = found[found["baseline"].eq("")]
    chains = [rows for _, rows in ours.groupby(list(ALIKE), sort=True) if _chains(rows)]
    steps = _steps(study)
    if not chains and not steps:
        raise ValueError(
            "needs a cell of `lacuna bench` with a pipeline and each of its stages, or one of decode_time on a GPU"
        )
    bars = max((len(rows) for rows in steps), default=0)
    with paper():
        figure, pairs = panels([*chains, *steps], 2, COLUMN, max(HEIGHT, 0.8 + 0.22 * bars))
        for axis, rows in pairs:
            (_panel if "case" in rows else _step_panel)(axis, rows)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def _steps(study: Study) -> list[pd.DataFrame]:
    frame = study.frame
    names = [f"stage_{stage}_ms" for stage in OF_STEPS if f"stage_{stage}_ms" in frame]
    profiled = frame[frame["task"].eq("decode_time") & frame["status"].eq("ok") & frame[names].notna().any(axis=1)]
    if profiled.empty:
        return []
    found = inside(Study(profiled), "decode_time", "ms")
    return [rows.head(MOST_LINES) for rows in wheres(found)]


def _step_panel(axis: Axes, rows: pd.DataFrame) -> None:
    for place, metrics in enumerate(rows["metrics"]):
        left = 0.0
        for stage, colour in OF_STEPS.items():
            width = metrics.get(f"stage_{stage}_ms", 0.0)
            if width > 0:  # neither absent nor NaN
                axis.barh(place, width, left=left, height=0.6, color=colour, label=stage)
                left += width
        axis.plot(
            [metrics["decode_ms_median"]], [place], color="#000000", marker="d", linestyle="none", label="median step"
        )
    names = [heading(label, wide=NAME) for label in rows["method_label"]]
    axis.set_yticks(range(len(rows)), names, fontsize=5.5 if any("\n" in name for name in names) else None)
    axis.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, None), xlabel="ms per step")
    axis.set_title(heading(str(rows["where"].iloc[0]), wide=26), fontsize=7)


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
