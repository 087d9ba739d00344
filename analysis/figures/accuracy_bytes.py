"""Quality against bytes read: what a method's selection costs is on the axis, not only what it attends.

Each mark is a method at one budget, at the bytes that attention read per decoded token over those that full reads,
both from the ledger: projected keys, thresholds and other auxiliary rows are charged. Bars and band are 95% intervals
over samples, as in the figure against density. Between marks of one method the table of equal bytes interpolates.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from ..marks import score_panels, scores
from ..study import Study


def draw(study: Study) -> Figure:
    """One panel per model, setting and task that is not a latency.

    Raises:
        ValueError: no cell that ended well has a score and bytes in its ledger.
    """
    return score_panels(scores(study.points, "bytes_ratio"), "bytes_ratio", "bytes read / bytes of full")
