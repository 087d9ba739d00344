"""Quality against measured density: one panel per task, with the dense model's line and interval.

Each mark is a method at one budget, at the density that was measured, not asked for. Bars and the band around the
dense line are 95% intervals over samples; marks of one method are joined where one budget varies. Both intervals hold
the same easy and hard samples: whether a method differs from dense is in the table's paired differences, not in the
overlap of bars and band.
"""

from __future__ import annotations

from matplotlib.figure import Figure

from ..marks import score_panels, scores
from ..study import Study


def draw(study: Study) -> Figure:
    """One panel per model, setting and task that is not a latency.

    Raises:
        ValueError: no cell that ended well has a score and a measured density.
    """
    return score_panels(scores(study.points, "density"), "density", "density (measured)")
