"""One point per model, method and task: estimate, interval, change against dense, what was really read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from . import significance, stats
from .headlines import DENSE
from .label import by_number, label_cells
from .pool import Pool, Rows, grouped

HARD = ("model_label", "dtype", "device", "ranks", "task_label")  # a baseline agrees in these, always
SOFT = ("prefill", "query_aware")  # and in these if there is one that does: they change nothing for a dense method
ENERGY = "energy_j_per_token"
USUAL, NAIVE = "lacuna", "eager"  # kernels of dense attention: the default, and matrix products with a softmax


@dataclass(frozen=True)
class Point:
    """A mark in a figure, a cell in a table.

    Attributes:
        change: difference to dense on the same samples, or speed-up over the fastest dense of the same condition
            (`is_time`); NaN without a baseline.
        base: the label of that baseline; `naive` is the speed-up over the dense that multiplies matrices.
        p: of no change, by `test`: McNemar's exact one for pairs of right and wrong, else Student's t (on the logarithm
            of a speed-up) with the bootstrap's standard error; `p_holm` is corrected over all points.
        detectable: smallest true change (of a speed-up: factor) that so many samples would show in four runs of five.
        density: share of the visible rows that was attended at decode, from the ledger.
        bytes_ratio: bytes read per token over those that dense attention reads, from the ledger.
        held_ratio: bytes held at the end over those that dense attention holds, from the ledger.
        peak_gib: the most that the device's allocator gave out; NaN where nothing measured it.
        energy: joules per token, and `energy_ratio` over dense; NaN where nothing measured it.
        cells: how many cells it was asked of; `failed` of them did not end well, `reason` says why;
            `pooled` says which arguments of the task differ among them (a needle's length).
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
    base: str
    naive: float
    p: float
    test: str
    detectable: float
    density: float
    bytes_ratio: float
    held_ratio: float
    peak_gib: float
    energy: float
    energy_ratio: float
    cells: int
    failed: int
    status: str
    reason: str
    pooled: str
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
    pools = [Pool(rows) for rows in grouped(cells)]
    fastest, naive = _baselines(filter(_is_usual, pools)), _baselines(filter(_is_naive, pools))
    bases = [_base(pool, _baseline(pool, fastest)) for pool in pools]
    facts = [pool.facts | _energy(pool, base or pool) for pool, base in zip(pools, bases, strict=True)]
    facts = [
        one | _named(pool, base, _baseline(pool, naive)) for one, pool, base in zip(facts, pools, bases, strict=True)
    ]
    for parts in (estimates(pools), changes(pools, bases)):
        facts = [one | part for one, part in zip(facts, parts, strict=True)]
    table = pd.DataFrame(facts, columns=_names())
    table["p_holm"] = significance.holm(table["p"].to_numpy(dtype=float))
    table["order"] = (table["method"] != DENSE).astype(int)
    table["falling"] = -table.groupby(["model", "setting", "method_label"])["density"].transform("mean").fillna(-1)
    keys = ["model", "setting", "order", "method", "falling", "method_label", "asked"]
    table["asked"] = by_number(table["task_label"])
    return table.sort_values(keys, kind="stable").drop(columns=["order", "falling", "asked"]).reset_index(drop=True)


def estimates(pools: Sequence[Pool]) -> list[dict[str, Any]]:
    """Value, interval and number of samples of each pool; pools of equal size are resampled together."""
    found = [stats.Interval(_mean_of(pool.ok, pool.head.metric), math.nan, math.nan, 0) for pool in pools]
    for statistic, places in _by_statistic(pools, [bool(pool.arrays) for pool in pools]).items():
        # a task whose samples are of another kind still has its number, without an interval
        runs = [np.concatenate(list(pools[i].arrays.values())) for i in places]
        for i, one in zip(places, stats.intervals(runs, statistic), strict=True):
            found[i] = one
    return [{"value": one.value, "low": one.low, "high": one.high, "n": one.n} for one in found]


def changes(pools: Sequence[Pool], bases: Sequence[Pool | None]) -> list[dict[str, Any]]:
    """Difference to the base of each pool on the samples that both have, or its speed-up; NaN where there is none."""
    found = [_changed(stats.NOTHING, math.nan, "")] * len(pools)
    both = [_pairs(pool, base) for pool, base in zip(pools, bases, strict=True)]
    for statistic, places in _by_statistic(pools, [pair is not None for pair in both]).items():
        pairs = [pair for i in places if (pair := both[i])]
        times = statistic is stats.median
        made = stats.ratios([(b, a) for a, b in pairs], statistic) if times else stats.differences(pairs, statistic)
        for i, pair, change in zip(places, pairs, made, strict=True):
            found[i] = _speed_up(change) if times else _difference(change, pair, statistic)
    return found


def _by_statistic(pools: Sequence[Pool], chosen: Sequence[bool]) -> dict[stats.Statistic, list[int]]:
    found = defaultdict[stats.Statistic, list[int]](list)
    for place, (pool, wanted) in enumerate(zip(pools, chosen, strict=True)):
        if wanted:
            found[pool.head.statistic].append(place)
    return found


def _pairs(pool: Pool, base: Pool | None) -> tuple[stats.Array, stats.Array] | None:
    common = [task for task in pool.arrays if task in base.arrays] if base else []
    if not common or base is None:
        return None
    if not pool.head.is_time and any(pool.units(task) != base.units(task) for task in common):
        return None
    ours, theirs = (np.concatenate([one.arrays[task] for task in common]) for one in (pool, base))
    return ours, theirs


def _speed_up(change: stats.Interval) -> dict[str, Any]:
    found = _changed(change, significance.student_ratio(change), "t")
    return {**found, "detectable": math.exp(found["detectable"])}


def _difference(change: stats.Interval, pair: tuple[stats.Array, stats.Array], of: stats.Statistic) -> dict[str, Any]:
    if of is stats.mean and stats.is_binary(pair[0]) and stats.is_binary(pair[1]):
        return _changed(change, significance.mcnemar(*pair), "McNemar")
    return _changed(change, significance.student(change), "t")


def _names() -> list[str]:
    return list(Point.__dataclass_fields__)


def _is_usual(pool: Pool) -> bool:
    # other kernels of dense attention have the same score; in time the fastest of them is what counts
    return pool.is_dense and (pool.head.is_time or _kernel(pool) == "")


def _is_naive(pool: Pool) -> bool:
    return pool.is_dense and pool.head.is_time and _kernel(pool) == NAIVE


def _kernel(pool: Pool) -> str:
    given = str(pool.facts["method_args"].get("kernel", ""))
    return "" if given == USUAL else given


def _baselines(pools: Iterable[Pool]) -> dict[tuple[Any, ...], Pool]:
    found: dict[tuple[Any, ...], Pool] = {}
    for pool in sorted(pools, key=_slowness):
        found.setdefault(pool.named((*HARD, *SOFT)), pool)
    for pool in list(found.values()):
        found.setdefault(pool.named(HARD), pool)
    return found


def _slowness(pool: Pool) -> float:
    """A time, so that the fastest comes first; what has none comes last."""
    value = pool.head.statistic.value(np.concatenate(list(pool.arrays.values()))) if pool.arrays else math.nan
    return math.inf if math.isnan(value) else value if pool.head.is_time else 0.0


def _base(pool: Pool, base: Pool | None) -> Pool | None:
    return None if pool is base or (pool.is_dense and not pool.head.is_time) else base


def _named(pool: Pool, base: Pool | None, naive: Pool | None) -> dict[str, Any]:
    both = naive is not None and pool.arrays and naive.arrays
    ratio = _slowness(naive) / _slowness(pool) if naive and both else math.nan
    return {"base": str(base.rows[0]["method_label"]) if base else "", "naive": ratio}


def _baseline(pool: Pool, dense: Mapping[tuple[Any, ...], Pool]) -> Pool | None:
    return dense.get(pool.named((*HARD, *SOFT)), dense.get(pool.named(HARD)))


def _changed(change: stats.Interval, p: float, test: str) -> dict[str, Any]:
    band = {"change": change.value, "change_low": change.low, "change_high": change.high}
    return {**band, "p": p, "test": test, "detectable": significance.detectable(change)}


def _energy(pool: Pool, base: Pool) -> dict[str, Any]:
    ours, theirs = _mean_of(pool.ok, ENERGY), _mean_of(base.ok, ENERGY)
    return {"energy": ours, "energy_ratio": ours / theirs if theirs else math.nan}


def _mean_of(rows: Rows, metric: str) -> float:
    known = [row[metric] for row in rows if metric in row and not math.isnan(row[metric])]
    return float(np.mean(known)) if known else math.nan
