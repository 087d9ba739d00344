"""One point per model, method and task: estimate, interval, change against dense, what was really read."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from . import significance, stats
from .headlines import DENSE, Headline, headline, units
from .label import label_cells

HARD = ("model_label", "dtype", "device", "ranks", "task_label")  # a baseline agrees in these, always
SOFT = ("prefill", "query_aware")  # and in these if there is one that does: they change nothing for a dense method
GROUP = ("model_label", "setting", "method_label", "task_label")
ENERGY = "energy_j_per_token"
Rows = Sequence[Mapping[Any, Any]]


@dataclass(frozen=True)
class Point:
    """A mark in a figure, a cell in a table.

    Attributes:
        change: difference to dense on the same samples, or speed-up over dense (`is_time`); NaN without a baseline.
        p: of no change, by `test`: McNemar's exact one for pairs of right and wrong, else Student's t (on the logarithm
            of a speed-up) with the bootstrap's standard error; `p_holm` is corrected over all points.
        detectable: smallest true change (of a speed-up: factor) that so many samples would show in four runs of five.
        density: share of the visible rows that was attended at decode, from the ledger.
        bytes_ratio: bytes read per token over those that dense attention reads, from the ledger.
        energy: joules per token, and `energy_ratio` over dense; NaN where nothing measured it.
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
    p: float
    test: str
    detectable: float
    density: float
    bytes_ratio: float
    energy: float
    energy_ratio: float
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
    return from_cells(label_cells(frame))


def from_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """`points`, of cells that `label_cells` has labelled already."""
    groups = grouped(cells)
    dense = _baselines(rows for rows in groups if rows[0]["method"] == DENSE)
    table = pd.DataFrame([vars(_point(rows, _baseline(rows, dense))) for rows in groups], columns=_names())
    table["p_holm"] = significance.holm(table["p"].to_numpy(dtype=float))
    table["order"] = (table["method"] != DENSE).astype(int)
    table["falling"] = -table.groupby(["model", "setting", "method_label"])["density"].transform("mean").fillna(-1)
    keys = ["model", "setting", "order", "method", "falling", "method_label", "task_label"]
    return table.sort_values(keys, kind="stable").drop(columns=["order", "falling"]).reset_index(drop=True)


def values(rows: Rows) -> dict[str, stats.Array]:
    """The samples of each question that ended well, by `task_id`, as its headline's statistic takes them."""
    ok = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: str(row["task_id"]))
    return {row["task_id"]: _head(row).values(row["samples"]) for row in ok}


def _names() -> list[str]:
    return list(Point.__dataclass_fields__)


def grouped(cells: pd.DataFrame) -> list[Rows]:
    """The cells that are pooled into one point each, point by point."""
    # plain mappings: tens of thousands of small tables take minutes
    found = defaultdict[tuple[str, ...], list[Mapping[Any, Any]]](list)
    for row in cells.to_dict("records"):
        found[tuple(row[name] for name in GROUP)].append(row)
    return [rows for _, rows in sorted(found.items())]


def _baselines(groups: Iterable[Rows]) -> dict[tuple[Any, ...], Rows]:
    found: dict[tuple[Any, ...], Rows] = {}
    for rows in groups:
        found[_condition(rows, (*HARD, *SOFT))] = rows
        found.setdefault(_condition(rows, HARD), rows)
    return found


def _baseline(rows: Rows, dense: Mapping[tuple[Any, ...], Rows]) -> Rows:
    return dense.get(_condition(rows, (*HARD, *SOFT)), dense.get(_condition(rows, HARD), ()))


def _condition(rows: Rows, names: Iterable[str]) -> tuple[Any, ...]:
    return tuple(rows[0][name] for name in names)


def _head(row: Mapping[Any, Any]) -> Headline:
    head = headline(row["task"])
    assert head is not None, "label_cells keeps tasks with a headline only"
    return head


def _point(rows: Rows, dense: Rows) -> Point:
    head, ok = _head(rows[0]), [row for row in rows if row["status"] == "ok"]
    estimate = _estimate(ok, head)
    numbers: dict[str, Any] = {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
    change = _change(ok, () if rows[0]["method"] == DENSE else dense, head)
    return Point(**_who(rows[0], head), **numbers, **change, **read_share(ok), **_energy(ok, dense), **_failures(rows))


def _who(first: Mapping[Any, Any], head: Headline) -> dict[str, Any]:
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


def _estimate(ok: Rows, head: Headline) -> stats.Interval:
    arrays = [a for a in values(ok).values() if len(a)]
    if arrays:
        return stats.interval(np.concatenate(arrays), head.statistic)
    # a task whose samples are of another kind still has its number, without an interval
    return stats.Interval(_mean_of(ok, head.metric), math.nan, math.nan, 0)


def _change(ok: Rows, dense: Rows, head: Headline) -> dict[str, Any]:
    ours, theirs = values(ok), values(dense)
    common = [t for t in ours if len(ours[t]) and len(theirs.get(t, ()))]
    if not common:
        return _changed(stats.NOTHING, math.nan, "")
    mine, other = (np.concatenate([a[t] for t in common]) for a in (ours, theirs))
    if head.is_time:
        speed_up = stats.ratio(other, mine, head.statistic)
        found = _changed(speed_up, significance.student_ratio(speed_up), "t")
        return {**found, "detectable": math.exp(found["detectable"])}
    if sample_units(ok, common) != sample_units(dense, common):
        return _changed(stats.NOTHING, math.nan, "")
    change = stats.difference(mine, other, head.statistic)
    if head.statistic is stats.mean and stats.is_binary(mine) and stats.is_binary(other):
        return _changed(change, significance.mcnemar(mine, other), "McNemar")
    return _changed(change, significance.student(change), "t")


def _changed(change: stats.Interval, p: float, test: str) -> dict[str, Any]:
    band = {"change": change.value, "change_low": change.low, "change_high": change.high}
    return {**band, "p": p, "test": test, "detectable": significance.detectable(change)}


def sample_units(rows: Rows, tasks: list[str]) -> list[tuple[Any, ...]]:
    """What each sample is of, in the order of `values`."""
    chosen = sorted((r for r in rows if r["status"] == "ok" and r["task_id"] in tasks), key=lambda r: str(r["task_id"]))
    return [unit for row in chosen for unit in units(row["samples"])]


def read_share(ok: Rows) -> dict[str, Any]:
    """Density and bytes of cells that ended well, over those of dense attention, weighted by tokens."""
    known = [row for row in ok if not math.isnan(row["density"])]
    if not known:
        return {"density": math.nan, "bytes_ratio": math.nan}
    tokens = np.array([(row["ledger"].get("decode") or {}).get("tokens") or 1 for row in known], dtype=float)
    columns = ("density", "bytes_read_per_token", "bytes_dense_per_token")
    density, read, whole = (np.average([row[c] for row in known], weights=tokens) for c in columns)
    return {"density": float(density), "bytes_ratio": float(read / whole) if whole else math.nan}


def _energy(ok: Rows, dense: Rows) -> dict[str, Any]:
    ours, theirs = _mean_of(ok, ENERGY), _mean_of([row for row in dense if row["status"] == "ok"], ENERGY)
    return {"energy": ours, "energy_ratio": ours / theirs if theirs else math.nan}


def _mean_of(rows: Rows, metric: str) -> float:
    known = [row[metric] for row in rows if metric in row and not math.isnan(row[metric])]
    return float(np.mean(known)) if known else math.nan


def _failures(rows: Rows) -> dict[str, Any]:
    bad = [row for row in rows if row["status"] != "ok"]
    reason = "; ".join(dict.fromkeys(f"{row['status']}: {row['reason'] or 'no reason was recorded'}" for row in bad))
    said = f"{len(bad)} of {len(rows)} cells {reason}" if 0 < len(bad) < len(rows) else reason
    return {"cells": len(rows), "failed": len(bad), "status": str(bad[0]["status"]) if bad else "ok", "reason": said}
