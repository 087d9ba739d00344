"""Tables of `lacuna bench`: every operation and baseline with its time, its bytes and what the device could reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

TEXTS = (
    "op",
    "case",
    "twin",
    "baseline",
    "status",
    "reason",
    "device",
    "versions",
    "dtype",
    "plan",
    "against",
    "samples_ms",
)
NUMBERS = (
    "median_ms",
    "bytes",
    "flops",
    "achieved_gb_s",
    "ceiling_gb_s",
    "percent_of_ceiling",
    "percent_in_chain",
    "percent_of_copy",
    "speed_up",
    "peak_mib",
)
NEEDED = ("op", "case", "baseline", "status", "median_ms", "bytes", "ceiling_gb_s")
SHAPE = r"b(?P<batch>\d+)_h(?P<heads>\d+)_g(?P<groups>\d+)_s(?P<context>\d+)"
DENSE = "dense_decode"


def is_bench(path: Path) -> bool:
    """Whether a file begins as `lacuna bench -o` writes it."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as lines:
        names = {name.strip('"') for name in lines.readline().strip().split(",")}
    return set(NEEDED) <= names


def read(path: Path) -> pd.DataFrame:
    """The rows, with batch, heads, groups and context of their case, and `run`, the file they come from."""
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    texts = {name: raw.get(name, pd.Series("", index=raw.index)) for name in TEXTS}
    nowhere = pd.Series(np.nan, index=raw.index)
    numbers = {name: pd.to_numeric(raw.get(name, nowhere), errors="coerce") for name in NUMBERS}
    shape = raw["case"].str.extract(SHAPE).apply(pd.to_numeric)
    return pd.DataFrame({**texts, **numbers, **{str(n): shape[n] for n in shape}, "run": path.stem})


def none() -> pd.DataFrame:
    """A table without rows."""
    return pd.DataFrame(columns=[*TEXTS, *NUMBERS, "batch", "heads", "groups", "context", "run"])


def decode(bench: pd.DataFrame) -> pd.DataFrame:
    """What was timed of decode attention, with `fastest` and `naive`: times of dense baselines of its case and dtype.

    `fastest_name` and `naive_name` say which these are; `bound` is the speed-up over the fastest that the bytes allow.
    """
    ok = bench[(bench["status"] == "ok") & bench["median_ms"].notna() & bench["context"].notna()]
    dense = ok[ok["op"].eq(DENSE)]
    dense = dense.assign(who=dense["baseline"].where(dense["baseline"].ne(""), DENSE))
    keys = ["run", "device", "dtype", "case"]
    fastest = dense.sort_values("median_ms", kind="stable").drop_duplicates(keys)
    naive = dense[dense["who"].str.contains("eager|naive", regex=True)].drop_duplicates(keys)
    names = {"median_ms": "fastest", "who": "fastest_name", "bytes": "dense_bytes"}
    found = ok.merge(fastest[[*keys, *names]].rename(columns=names), on=keys, how="left")
    names = {"median_ms": "naive", "who": "naive_name"}
    found = found.merge(naive[[*keys, *names]].rename(columns=names), on=keys, how="left")
    return found.assign(
        gain=found["fastest"] / found["median_ms"],
        gain_naive=found["naive"] / found["median_ms"],
        bound=found["dense_bytes"] / found["bytes"],
    )
