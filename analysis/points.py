"""One point per model, method and task: estimate, interval, change against dense, what was really read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from . import stats
from .headlines import DENSE, Headline, headline, units
from .label import label_cells

HARD = ("model_label", "dtype", "device", "ranks", "task_label")  # a baseline agrees in these, always
SOFT = ("prefill", "query_aware")  # and in these if there is one that does: they change nothing for a dense method
GROUP = ("model_label", "setting", "method_label", "task_label")


@dataclass(frozen=True)
class Point:
    """A mark in a figure, a cell in a table.

    Attributes:
        change: difference to dense on the same samples, or speed-up over dense (`is_time`); NaN without a baseline.
        density: share of the visible rows that was attended at decode, from the ledger.
        bytes_ratio: bytes read per token over those that dense attention reads, from the ledger.
        cells: how many cells it was asked of; `failed` of them did not end well, `reason` says why.
    """

    model: str
    setting: str
    method: str
    method_label: str
    task: str
    task_label: str
    heading: str
    better: str
    is_time: bool
    is_dense: bool
    value: float
    low: float
    high: float
    n: int
    change: float
    change_low: float
    change_high: float
    density: float
    bytes_ratio: float
    cells: int
    failed: int
    status: str
    reason: str
    method_args: dict[str, Any] = field(default_factory=dict)
    task_args: dict[str, Any] = field(default_factory=dict)


def points(frame: pd.DataFrame) -> pd.DataFrame:
    """Every Point of a table of records, dense first, then by method and falling density.

    Raises:
        ValueError: there are no records.
    """
    cells = label_cells(frame)
    groups = [rows for _, rows in cells.groupby(list(GROUP), sort=True)]
    dense = _baselines(rows for rows in groups if rows["method"].iloc[0] == DENSE)
    table = pd.DataFrame([asdict(_point(rows, _baseline(rows, dense))) for rows in groups], columns=_names())
    table["order"] = (table["method"] != DENSE).astype(int)
    table["falling"] = -table.groupby(["model", "setting", "method_label"])["density"].transform("mean").fillna(-1)
    keys = ["model", "setting", "order", "method", "falling", "method_label", "task_label"]
    return table.sort_values(keys, kind="stable").drop(columns=["order", "falling"]).reset_index(drop=True)


def _names() -> list[str]:
    return list(Point.__dataclass_fields__)


def _baselines(groups: Iterable[pd.DataFrame]) -> dict[tuple[Any, ...], pd.DataFrame]:
    found: dict[tuple[Any, ...], pd.DataFrame] = {}
    for rows in groups:
        first = rows.iloc[0]
        found[tuple(first[[*HARD, *SOFT]])] = rows
        found.setdefault(tuple(first[list(HARD)]), rows)
    return found


def _baseline(rows: pd.DataFrame, dense: Mapping[tuple[Any, ...], pd.DataFrame]) -> pd.DataFrame | None:
    first = rows.iloc[0]
    return dense.get(tuple(first[[*HARD, *SOFT]]), dense.get(tuple(first[list(HARD)])))


def _point(rows: pd.DataFrame, dense: pd.DataFrame | None) -> Point:
    first = rows.iloc[0]
    head = headline(first["task"])
    assert head is not None, "label_cells keeps tasks with a headline only"
    ok = rows[rows["status"] == "ok"]
    estimate, change = _estimate(ok, head), _change(ok, dense, head)
    numbers: dict[str, Any] = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    changes: dict[str, Any] = {"change": change.value, "change_low": change.low, "change_high": change.high}
    return Point(**_who(first, head), **numbers, **changes, **_read(ok), **_failures(rows))


def _who(first: pd.Series[Any], head: Headline) -> dict[str, Any]:
    spec = json.loads(first["cell_json"])
    return {
        "model": first["model_label"],
        **{name: first[name] for name in ("setting", "method", "method_label", "task", "task_label")},
        "heading": head.words + first["task_label"].removeprefix(head.task),
        "better": head.better,
        "is_time": head.is_time,
        "is_dense": first["method"] == DENSE,
        "method_args": spec["method"]["args"],
        "task_args": spec["task"]["args"],
    }


def _values(ok: pd.DataFrame, head: Headline) -> dict[str, stats.Array]:
    pairs = zip(ok["task_id"], ok["samples"], strict=True)
    return {task: head.values(samples) for task, samples in sorted(pairs, key=lambda p: str(p[0]))}


def _estimate(ok: pd.DataFrame, head: Headline) -> stats.Interval:
    arrays = [a for a in _values(ok, head).values() if len(a)]
    if arrays:
        return stats.interval(np.concatenate(arrays), head.statistic)
    # a task whose samples are of another kind still has its number, without an interval
    known = ok[head.metric].dropna() if head.metric in ok else pd.Series(dtype="float64")
    return stats.Interval(float(known.mean()), math.nan, math.nan, 0) if len(known) else stats.NOTHING


def _change(ok: pd.DataFrame, dense: pd.DataFrame | None, head: Headline) -> stats.Interval:
    if dense is None or ok.empty or ok["method"].iloc[0] == DENSE:
        return stats.NOTHING
    ours, theirs = _values(ok, head), _values(dense[dense["status"] == "ok"], head)
    common = [t for t in ours if len(ours[t]) and len(theirs.get(t, ()))]
    if not common:
        return stats.NOTHING
    mine, other = (np.concatenate([a[t] for t in common]) for a in (ours, theirs))
    if head.is_time:
        return stats.ratio(other, mine, head.statistic)
    paired = _units(ok, common) == _units(dense, common)
    return stats.difference(mine, other, head.statistic) if paired else stats.NOTHING


def _units(rows: pd.DataFrame, tasks: list[str]) -> list[tuple[Any, ...]]:
    chosen = rows[(rows["status"] == "ok") & rows["task_id"].isin(tasks)].sort_values("task_id")
    return [unit for samples in chosen["samples"] for unit in units(samples)]


def _read(ok: pd.DataFrame) -> dict[str, Any]:
    tokens = np.array([(ledger.get("decode") or {}).get("tokens") or 1 for ledger in ok["ledger"]], dtype=float)
    known = ok["density"].notna().to_numpy(dtype=bool)
    if not known.any():
        return {"density": math.nan, "bytes_ratio": math.nan}
    weight = tokens[known] / tokens[known].sum()
    read, whole = (
        ok[c].to_numpy(dtype=float)[known] @ weight for c in ("bytes_read_per_token", "bytes_dense_per_token")
    )
    density = float(ok["density"].to_numpy(dtype=float)[known] @ weight)
    return {"density": density, "bytes_ratio": float(read / whole) if whole else math.nan}


def _failures(rows: pd.DataFrame) -> dict[str, Any]:
    bad = rows[rows["status"] != "ok"]
    texts = [f"{s}: {r or 'no reason was recorded'}" for s, r in zip(bad["status"], bad["reason"], strict=True)]
    reason = "; ".join(dict.fromkeys(texts))
    said = f"{len(bad)} of {len(rows)} cells {reason}" if 0 < len(bad) < len(rows) else reason
    status = "ok" if bad.empty else str(bad["status"].iloc[0])
    return {"cells": len(rows), "failed": len(bad), "status": status, "reason": said}
