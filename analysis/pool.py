"""Cells that make one point together: their samples, what these are of, what the ledger says."""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from . import stats
from .headlines import DENSE, Headline, headline, units

GROUP = ("model_label", "setting", "method_label", "task_label")
Rows = Sequence[Mapping[Any, Any]]


class Pool:
    """The cells of one point; what is asked for is computed once."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    @functools.cached_property
    def ok(self) -> Rows:
        """Those that ended well."""
        return [row for row in self.rows if row["status"] == "ok"]

    @functools.cached_property
    def head(self) -> Headline:
        """The headline of their task."""
        found = headline(self.rows[0]["task"])
        assert found is not None, "label_cells keeps tasks with a headline only"
        return found

    @property
    def is_dense(self) -> bool:
        """Whether other methods are compared with it."""
        return bool(self.rows[0]["method"] == DENSE)

    @functools.cached_property
    def arrays(self) -> dict[str, stats.Array]:
        """Samples of each question that has some, by `task_id`, as the headline's statistic takes them."""
        found = {row["task_id"]: self.head.values(row["samples"]) for row in _ordered(self.ok)}
        return {task: array for task, array in found.items() if len(array)}

    def units(self, task: str) -> list[tuple[Any, ...]]:
        """What each sample of a question is of."""
        return self._units[task]

    @functools.cached_property
    def _units(self) -> dict[str, list[tuple[Any, ...]]]:
        return {row["task_id"]: units(row["samples"]) for row in _ordered(self.ok)}

    def named(self, names: Iterable[str]) -> tuple[Any, ...]:
        """What they have in common, by column."""
        return tuple(self.rows[0][name] for name in names)

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """Names and arguments, density and bytes, and what failed: everything of a Point that is no statistic."""
        first, head = self.rows[0], self.head
        spec = json.loads(first["cell_json"])
        return {
            "model": first["model_label"],
            **{name: first[name] for name in ("setting", "method", "method_label", "task", "task_label")},
            "heading": head.words + first["task_label"].removeprefix(head.task),
            "better": head.better,
            "is_time": head.is_time,
            "is_dense": self.is_dense,
            "method_args": spec["method"]["args"],
            "task_args": spec["task"]["args"],
            **self.read_share,
            **self.memory,
            **_failures(self.rows),
            "pooled": _pooled(self.rows),
        }

    @functools.cached_property
    def read_share(self) -> dict[str, float]:
        """Density and bytes of cells that ended well, over those of dense attention, weighted by tokens."""
        known = [row for row in self.ok if not math.isnan(row["density"])]
        if not known:
            return {"density": math.nan, "bytes_ratio": math.nan}
        tokens = np.array([(row["ledger"].get("decode") or {}).get("tokens") or 1 for row in known], dtype=float)
        columns = ("density", "bytes_read_per_token", "bytes_dense_per_token")
        density, read, whole = (np.average([row[c] for row in known], weights=tokens) for c in columns)
        return {"density": float(density), "bytes_ratio": float(read / whole) if whole else math.nan}

    @functools.cached_property
    def memory(self) -> dict[str, float]:
        """Bytes held over those of dense attention, and the highest peak that was measured."""
        held, whole = (sum(_known(self.ok, name)) for name in ("bytes_held", "bytes_held_dense"))
        peaks = _known(self.ok, "peak_gib")
        return {"held_ratio": held / whole if whole else math.nan, "peak_gib": max(peaks, default=math.nan)}


def grouped(cells: pd.DataFrame) -> list[Rows]:
    """The cells that are pooled into one point each, point by point."""
    # plain mappings: tens of thousands of small tables take minutes
    found = defaultdict[tuple[str, ...], list[Mapping[Any, Any]]](list)
    for row in cells.to_dict("records"):
        found[tuple(row[name] for name in GROUP)].append(row)
    return [rows for _, rows in sorted(found.items())]


def _known(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows if name in row and not math.isnan(row[name])]


def _pooled(rows: Rows) -> str:
    """The arguments of the task that differ among cells of one point: `length 256 to 1024`."""
    names = [name for name in rows[0] if str(name).startswith("task.")] if len(rows) > 1 else []
    values = {str(name): list(dict.fromkeys(row[name] for row in rows if pd.notna(row[name]))) for name in names}
    return ", ".join(f"{name.removeprefix('task.')} {_range(v)}" for name, v in values.items() if len(v) > 1)


def _range(values: Sequence[Any]) -> str:
    try:
        known = [float(value) for value in values]
    except (TypeError, ValueError):
        return f"of {len(values)} kinds"
    return f"{min(known):g} to {max(known):g}"


def _ordered(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: str(row["task_id"]))


def _failures(rows: Rows) -> dict[str, Any]:
    bad = [row for row in rows if row["status"] != "ok"]
    reason = "; ".join(dict.fromkeys(f"{row['status']}: {row['reason'] or 'no reason was recorded'}" for row in bad))
    said = f"{len(bad)} of {len(rows)} cells {reason}" if 0 < len(bad) < len(rows) else reason
    return {"cells": len(rows), "failed": len(bad), "status": str(bad[0]["status"]) if bad else "ok", "reason": said}
