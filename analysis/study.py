"""Records with what is computed of them, once for a whole report: every figure takes a Study.

Of a large archive these are the records that are shown (see `survey.choose`).
"""

from __future__ import annotations

import functools

import pandas as pd

from .bench import none
from .label import label_cells
from .points import from_cells


class Study:
    """A table of records, its labelled cells, its points, and what `lacuna bench` timed.

    Raises:
        ValueError: when cells or points are asked for and there are no records.
    """

    def __init__(self, frame: pd.DataFrame, bench: pd.DataFrame | None = None) -> None:
        self.frame = frame
        self.bench = none() if bench is None else bench

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """See `label.label_cells`."""
        return label_cells(self.frame)

    @functools.cached_property
    def points(self) -> pd.DataFrame:
        """See `points.points`."""
        return from_cells(self.cells)

    def compute(self) -> None:
        """Cells and points now, so that copies of this study have them."""
        if len(self.frame):
            assert self.points is not None, "points are of cells"
