"""Memory that the kernels for many query rows take beside their inputs, against the length of the text.

Peaks of calls that were verified in the same run, outputs included; both axes are logarithmic. The thin line is what a
matrix of all rows by all rows, of one head and two bytes an entry, would take: what none of them may grow like.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from ..study import Study
from ..style import COLUMN, legend, panels, paper
from .prefill_time import OPS, lines, prompts, widest


def draw(study: Study) -> Figure:
    """One panel for each shape of heads.

    Raises:
        ValueError: no kernel for many query rows was timed.
    """
    found = widest(prompts(study.bench, "peak_mib"))
    shapes = found.groupby(["device", "batch", "heads", "groups"])
    groups = [(shape, rows) for shape, rows in shapes if rows["op"].isin(OPS).any()]
    with paper():
        figure, pairs = panels(groups, 2, 0.8 * COLUMN, 0.62 * COLUMN)
        for axis, (shape, rows) in pairs:
            lines(axis, rows, "peak_mib")
            lengths = sorted(rows["context"].unique())
            square = [2 * length * length / 2**20 for length in lengths]
            axis.plot(lengths, square, color="#bbbbbb", linewidth=0.8, label="one head's matrix of scores")
            axis.set(xlabel="tokens", ylabel="MiB beside the inputs")
            axis.set_title(f"batch {shape[1]:g}, heads {shape[2]:g}/{shape[3]:g}\n{shape[0]}", fontsize=6)
        legend(figure, [axis for axis, _ in pairs])
    return figure
