"""Time of the kernels for many query rows against the length of the text, beside dense attention of the same tensors.

Medians of calls that were verified in the same run; both axes are logarithmic. Grey marks are the library's dense
attention by its back ends: forward beside everything that acts on a prompt, backward beside the gradient. A kernel is
shown as it cuts its work by itself; of several blocks or budgets at one length the slowest is shown, of several head
dims in one table the largest (`landmark_time` shows all).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..study import Study
from ..style import COLUMN, legend, nth, panels, paper

# What a panel holds: operations, and the dense pass that they are held against.
BESIDE = {
    "forward": ("attention", ("landmark_attention",)),
    "backward": ("attention_gradient", ("landmark_gradient",)),
    "column sums and votes": ("attention", ("column_sums", "window_votes")),
    "thresholds": ("attention", ("threshold_prefill", "kth_score", "linear_prefill")),
}
DENSE = {"sdpa_flash": "x", "sdpa_cudnn": "d", "sdpa_efficient": "+", "sdpa_math": "1", "eager": "2"}
OPS = sorted({op for _, ops in BESIDE.values() for op in ops})


def prompts(bench: pd.DataFrame, value: str) -> pd.DataFrame:
    """Rows of these operations and of dense attention that have a value, with `who` and the length `context`.

    Raises:
        ValueError: there are none.
    """
    known = {op for dense, ops in BESIDE.values() for op in (dense, *ops)}
    found = bench[bench["op"].isin(known) & bench["status"].eq("ok") & bench[value].notna() & bench["context"].notna()]
    found = found[found["plan"].eq("") & found["twin"].ne("verify")]
    if found.empty or found["op"].str.startswith("attention").all():
        raise ValueError("needs a cell of the kernels for many query rows: tests/gpu/prefill.sh FOLDER times them")
    return found.assign(who=found["baseline"].where(found["baseline"].ne(""), found["op"]))


def widest(found: pd.DataFrame) -> pd.DataFrame:
    """Of cases that name a head dim, those of the largest of their table; lines of several would be told as one."""
    dim = found["case"].str.extract(r"_d(\d+)$")[0].astype(float)
    return found[dim.isna() | dim.eq(dim.groupby(found["run"]).transform("max"))]


def draw(study: Study) -> Figure:
    """One panel for each kind of pass and shape of heads.

    Raises:
        ValueError: no kernel for many query rows was timed.
    """
    found = widest(prompts(study.bench, "median_ms"))
    groups = []
    for kind, (dense, ops) in BESIDE.items():
        for shape, rows in found[found["op"].isin((dense, *ops))].groupby(["device", "batch", "heads", "groups"]):
            if rows["op"].isin(ops).any():
                groups.append((kind, shape, rows))
    with paper():
        figure, pairs = panels(groups, 2, 0.8 * COLUMN, 0.62 * COLUMN)
        for axis, (kind, shape, rows) in pairs:
            lines(axis, rows, "median_ms")
            axis.set(xlabel="tokens", ylabel="ms")
            axis.set_title(f"{kind}: batch {shape[1]:g}, heads {shape[2]:g}/{shape[3]:g}\n{shape[0]}", fontsize=6)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def lines(axis: Axes, rows: pd.DataFrame, value: str) -> None:
    """A line for each operation and baseline, on logarithmic axes with the lengths themselves as ticks."""
    axis.set(xscale="log", yscale="log")
    lengths = sorted(rows["context"].unique())
    axis.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths])
    axis.set_xticks([], minor=True)
    for who, marks in rows.groupby("who", sort=True):
        by_length = marks.groupby("context")[value].max()
        axis.plot(by_length.index, by_length, label=str(who), linewidth=1, **_stroke(str(who)))


def _stroke(who: str) -> dict[str, Any]:
    if who in OPS:
        mine = nth(OPS.index(who))
        return {"color": mine.colour, "marker": mine.marker, "linestyle": "-"}
    return {"color": "#777777", "marker": DENSE.get(who, "|"), "linestyle": ":"}
