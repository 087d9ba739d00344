"""Which cells are shown: conditions such as `task=needle` or `method.keep=0.25`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..results.fields import near


def where(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The records for which every `column=value` holds; numbers are compared as numbers (0.25 is .25).

    Raises:
        ValueError: a condition is not of that form, names no column, or nothing is left.
    """
    return frame[matches(frame, conditions)] if conditions else frame


def matches(frame: pd.DataFrame, conditions: Sequence[str]) -> NDArray[np.bool_]:
    """Which records meet every condition; raises as `where` does."""
    kept = np.ones(len(frame), dtype=bool)
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise ValueError(f"--where {condition}: expected COLUMN=VALUE, such as task=needle")
        if name not in frame.columns:
            raise ValueError(f"--where {condition}: there is no column {name!r}; {near(name, map(str, frame.columns))}")
        kept &= _equals(frame[name], value).to_numpy(dtype=bool)
        if not kept.any():
            there = ", ".join(sorted({str(v) for v in frame[name].dropna()})[:12])
            raise ValueError(f"--where {condition}: no record has that; {name} has: {there}")
    return kept


def _equals(column: pd.Series, value: str) -> pd.Series:
    texts = column.astype(str) == value
    try:
        wanted = float(value)
    except ValueError:
        return texts
    return texts | (pd.to_numeric(column, errors="coerce") == wanted)
