"""Cells that did not end well: all of them in a file, the first in full, and how many there are of each reason."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from ..results.archive import Archive
from ..results.cell import Cell
from .numbers import plural
from .render import to_csv

MOST = 200  # that a page lists with their traces
MOST_REASONS = 12
COLUMNS = ("key", "status", "reason", "model", "method_label", "task")


def files(archive: Archive) -> dict[str, str]:
    """`failed.csv`, where anything failed."""
    bad = archive.lean[_bad(archive)]
    return {"failed.csv": to_csv(bad[list(COLUMNS)])} if len(bad) else {}


def listed(archive: Archive) -> pd.DataFrame:
    """The first of them, by key, with trace and cell."""
    places = np.flatnonzero(_bad(archive))
    order = np.argsort(archive.lean["key"].to_numpy()[places], kind="stable")
    rows: pd.DataFrame = archive.load(np.sort(places[order[:MOST]])).sort_values("key")
    return rows


def counted(archive: Archive) -> list[str]:
    """A sentence for each status and reason, the most frequent first, where not every cell is listed."""
    bad = archive.lean[_bad(archive)]
    if len(bad) <= MOST:
        return []
    counts = (bad["status"].astype(str) + ": " + bad["reason"].astype(str)).value_counts()
    said = [f"{plural(int(count), 'cell')} {why}" for why, count in counts.head(MOST_REASONS).items()]
    return [f"The first {MOST} of {len(bad):,} are listed; failed.csv has all.", *said]


def name(cell_json: str) -> str:
    """A cell as people name it; of another schema, as it is written."""
    try:
        return str(Cell.from_json(json.loads(cell_json)))
    except (ValueError, KeyError, TypeError):
        return cell_json


def _bad(archive: Archive) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray((archive.lean["status"] != "ok").to_numpy(dtype=bool))
