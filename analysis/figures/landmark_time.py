"""Time of landmark attention, forward and backward, against the length of the text, one column for each head dim.

Medians of calls that were verified in the same run, both axes logarithmic. Grey marks are the library's dense attention
of the same tensors, by its back ends. One device, batch, number of heads and block are shown, those with most lines; a
kernel is shown as it cuts its work by itself.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..study import Study
from ..style import COLUMN, legend, panels, paper
from .prefill_time import lines, prompts

PASSES = {"forward": ("attention", "landmark_attention"), "backward": ("attention_gradient", "landmark_gradient")}
CUT = r"_block(?P<block>\d+)_d(?P<dim>\d+)$"


def draw(study: Study) -> Figure:
    """A row of panels for each pass, a column for each head dim; the block that was timed at most lengths.

    Raises:
        ValueError: no landmark attention was timed.
    """
    found = timed(study)
    dims = sorted(found["dim"].unique())
    groups = [(kind, dim, found[found["op"].isin(ops) & found["dim"].eq(dim)])
              for kind, ops in PASSES.items() for dim in dims]  # fmt: skip
    with paper():
        figure, pairs = panels(groups, len(dims), 0.62 * COLUMN, 0.6 * COLUMN)
        for axis, (kind, dim, rows) in pairs:
            lines(axis, rows, "median_ms")
            axis.set(xlabel="tokens", ylabel="ms")
            axis.set_title(f"{kind}, D = {dim}", fontsize=6)
        legend(figure, [axis for axis, _ in pairs])
    return figure


def timed(study: Study) -> pd.DataFrame:
    """What was timed of both passes with `block` and `dim`: of one device, shape of heads and block, the commonest.

    Raises:
        ValueError: as `draw`.
    """
    found = prompts(study.bench, "median_ms")
    found = found.join(found["case"].str.extract(CUT).astype("Int64")).dropna(subset=["dim"])
    found = found[found["op"].isin({op for ops in PASSES.values() for op in ops})]
    ours = found[found["op"].str.startswith("landmark")]
    if ours.empty:
        raise ValueError("needs landmark attention timed by length: tests/gpu/prefill.sh FOLDER landmark_dims does it")
    keys = ["run", "device", "batch", "heads", "groups", "block"]
    return found.merge(ours[keys].value_counts().head(1).index.to_frame(index=False), on=keys)
