"""Times of operations against the fastest dense attention and the naive one, both named, with what bytes allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .bench import decode
from .numbers import letter, number, plural, times
from .table import TextTable

COLUMNS = ("run", "device", "dtype", "case", "op", "baseline", "median_ms", "low", "high", "achieved_gb_s",
           "ceiling_gb_s", "fastest_name", "gain", "bound", "naive_name", "gain_naive")  # fmt: skip
ATTENTION = ("dense_decode", "gather_decode")
PIPELINE = "_pipeline"


def numbers(bench: pd.DataFrame) -> pd.DataFrame:
    """One row per operation, baseline and case that was timed, unrounded."""
    return decode(bench).reindex(columns=COLUMNS)


def lay_out(bench: pd.DataFrame) -> TextTable:
    """The same as text; what could not be timed says why."""
    found = decode(bench)
    whole = found["op"].str.endswith(PIPELINE)
    found = found.assign(turn=np.select([whole, found["op"].isin(ATTENTION)], [0, 1], 2))
    found = found.sort_values(["turn", "op", "baseline", "context", "case"], kind="stable")
    several = [name for name in ("run", "device") if len(bench[name].unique()) > 1]
    notes = dict[str, str]()
    rows = [[*(str(row[name]) for name in several), *_texts(row)] for row in found.to_dict("records")]
    bad = bench[bench["status"] != "ok"]
    rows += [[*(str(row[name]) for name in several), *_failed(row, notes)] for row in bad.to_dict("records")]
    headings = [*several, "case", "operation", "ms ↓", "GB/s", "of device copy", "over the fastest dense", "bound",
                "of bound", "over the naive"]  # fmt: skip
    return TextTable(headings, rows, len(several) + 2, _about(found), [f"[{m}] {why}" for why, m in notes.items()])


def sentences(bench: pd.DataFrame) -> list[str]:
    """What the chains of operations gain at most and at least, over which baselines."""
    found = decode(bench)
    chains = found[found["op"].str.endswith(PIPELINE) & found["gain"].notna()]
    return [_sentence(str(op), rows) for op, rows in chains.groupby("op", sort=True)]


def origins(bench: pd.DataFrame) -> list[tuple[str, str]]:
    """Device and versions of each file of times."""
    rows = bench.drop_duplicates(["run", "device", "versions"]).to_dict("records")
    return [(f"bench {row['run']}", f"{row['device']}, {row['versions']}, {row['dtype']}") for row in rows]


def _sentence(op: str, rows: pd.DataFrame) -> str:
    ordered = rows.sort_values("gain", kind="stable")
    best, least = ordered.iloc[-1], ordered.iloc[0]
    of_bound = number(best["gain"] / best["bound"] * 100, 2)
    return (
        f"{op}: {times(least['gain'])} ({least['case']}) to {times(best['gain'])} ({best['case']}) over the fastest "
        f"dense attention of the same run ({best['fastest_name']}), {of_bound}% of "
        f"what its bytes allow; over the naive one ({best['naive_name']}) {times(best['gain_naive'])}."
    )


def _texts(row: Mapping[Any, Any]) -> list[str]:
    who = f"{row['op']} ({row['baseline']})" if row["baseline"] else str(row["op"])
    ceiling = row["achieved_gb_s"] / row["ceiling_gb_s"]
    share = "–" if pd.isna(ceiling) else f"{ceiling:.0%}"
    first = [str(row["case"]), who, number(row["median_ms"]), number(row["achieved_gb_s"]), share]
    if not (str(row["op"]).endswith(PIPELINE) or row["op"] in ATTENTION) or pd.isna(row["gain"]):
        return [*first, "–", "–", "–", "–"]  # a stage alone computes no attention
    gain = f"{times(row['gain'])} {row['fastest_name']}"
    return [*first, gain, times(row["bound"]), f"{row['gain'] / row['bound']:.0%}", times(row["gain_naive"])]


def _failed(row: Mapping[Any, Any], notes: dict[str, str]) -> list[str]:
    who = f"{row['op']} ({row['baseline']})" if row["baseline"] else str(row["op"])
    mark = notes.setdefault(str(row["reason"] or "no reason was recorded"), letter(len(notes)))
    return [str(row["case"]), who, f"{row['status']} [{mark}]", *["–"] * 6]


def _about(found: pd.DataFrame) -> str:
    fastest = ", ".join(sorted({str(n) for n in found["fastest_name"].dropna()})) or "none was timed"
    naive = ", ".join(sorted({str(n) for n in found["naive_name"].dropna()})) or "none was timed"
    return (
        f"{plural(len(found), 'time')}: medians of one call. Fastest dense: of all dense kernels and baselines of the "
        f"same case and run the one with the least time ({fastest}); naive: {naive}. Bound: bytes of dense attention "
        "over those of the operation, the speed-up if it were nothing but reading; a pipeline is the whole step, "
        "gather_decode alone leaves out what chooses the rows."
    )
