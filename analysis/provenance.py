"""Where the numbers come from, and what a reader must know before comparing them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..results.archive import Archive
from ..results.plugins import names
from .doubts import doubtful, listed
from .numbers import plural

ASKED = ("dtype", "device", "ranks", "prefill", "query_aware", "seed")
MIXED = {
    "git_revision": "revisions of the code",
    "source_digest": "states of the code",
    "host": "hosts",
    "cpu": "kinds of CPU",
    "gpu": "kinds of GPU",
}
MOST = 6  # values that are listed; a job's number has as many as there are jobs


def origins(archive: Archive) -> list[tuple[str, str]]:
    """(What, its values with the number of cells): conditions first, then provenance; nothing is listed twice."""
    if archive.lean.empty:
        return []
    asked = [(name, _counted(Counter(_counts(archive.lean[name])))) for name in ASKED]
    return [*asked, *((name, _counted(values)) for name, values in sorted(_values(archive).items()))]


def notices(archive: Archive, cells: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """Sentences on what makes records hard to compare, or keeps them out of the table.

    Args:
        archive: all records.
        cells: those that are shown, labelled.
        found: their points.
    """
    values = _values(archive)
    said = [_mixed(values.get(name, Counter()), words) for name, words in MIXED.items()]
    said += [_mixed(v, f"versions of {k.split('.', 1)[1]}") for k, v in sorted(values.items()) if k[:9] == "packages."]
    said += [*_versions(archive), _dirty(values), *doubtful(archive), _unread(cells), _empty(found)]
    return [text for text in [*said, _unknown(archive), _alone(found)] if text]


def _counts(column: pd.Series[Any]) -> dict[str, int]:
    return {str(value): int(count) for value, count in column.value_counts().items()}


def _values(archive: Archive) -> dict[str, Counter[str]]:
    values: dict[str, Counter[str]] = {}
    for text, times in archive.provenance.items():
        for name, value in _flat(_parsed(text)).items():
            values.setdefault(name, Counter())[value] += times
    return values


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {"provenance": "cannot be read"}
    return found if isinstance(found, dict) else {"provenance": "cannot be read"}


def _flat(raw: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in raw.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": _plain(value)}
        found |= {k: v for k, v in inner.items() if v}
    return found


def _plain(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    listed = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = f"; and {len(listed) - MOST} more" if len(listed) > MOST else ""
    return "; ".join(f"{value} ({plural(count, 'cell')})" for value, count in listed[:MOST]) + rest


def _mixed(values: Counter[str], words: str) -> str:
    return f"The cells come from {len(values)} {words}: {_counted(values)}." if len(values) > 1 else ""


def _dirty(values: Mapping[str, Counter[str]]) -> str:
    count = values.get("git_dirty", Counter())["true"]
    return f"{plural(count, 'cell')} ran from a working tree with changes that no revision holds." if count else ""


def _versions(archive: Archive) -> list[str]:
    # results of another version answer another question, though the row has the same name
    seen: dict[tuple[str, str], Counter[str]] = {}
    for part in ("method", "task"):
        codes = archive.codes[part]
        counts = np.bincount(codes[codes >= 0], minlength=len(archive.specs[part]))
        for spec, count in zip(archive.specs[part], counts, strict=True):
            if count:
                seen.setdefault((part, str(spec["name"])), Counter())[str(spec["version"])] += int(count)
    said = [_mixed(values, f"versions of the {part} {name}") for (part, name), values in sorted(seen.items())]
    return [text for text in said if text]


def _unread(cells: pd.DataFrame) -> str:
    bad = cells.loc[cells["unread"].astype(bool), "key"]
    return f"{plural(len(bad), 'record')} with samples or a ledger that cannot be read: {listed(bad)}." * bool(len(bad))


def _empty(found: pd.DataFrame) -> str:
    empty = found[(found["status"] == "ok") & found["value"].isna()]
    text = ", ".join(f"{m} ({h})" for m, h in zip(empty["method_label"][:MOST], empty["heading"][:MOST], strict=True))
    return f"{plural(len(empty), 'result')} ended well and has no number: {text}." if len(empty) else ""


def _unknown(archive: Archive) -> str:
    missing = sorted(set(map(str, archive.lean["task"].unique())) - set(names("tasks")))
    return f"This version has no file for the tasks {', '.join(missing)}; their cells are not shown." if missing else ""


def _alone(found: pd.DataFrame) -> str:
    alone = found[~found["is_dense"].astype(bool) & found["value"].notna() & found["change"].isna()]
    text = ", ".join(f"{m} ({h})" for m, h in zip(alone["method_label"][:MOST], alone["heading"][:MOST], strict=True))
    return (
        f"{plural(len(alone), 'result')} without a dense cell on the same samples to compare with: {text}."
        if len(alone)
        else ""
    )
