"""Where the numbers come from, and what a reader must know before comparing them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ..results.plugins import names
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


def origins(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(What, its values with the number of cells): conditions first, then provenance; nothing is listed twice."""
    asked = [(name, _counted(Counter(map(str, frame[name])))) for name in ASKED]
    return [*asked, *((name, _counted(values)) for name, values in sorted(_values(frame).items()))]


def notices(frame: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """Sentences on what makes cells hard to compare, or keeps them out of the table."""
    values = _values(frame)
    said = [_mixed(values.get(name, Counter()), words) for name, words in MIXED.items()]
    said += [_mixed(v, f"versions of {k.split('.', 1)[1]}") for k, v in sorted(values.items()) if k[:9] == "packages."]
    return [
        s
        for s in [
            *said,
            *_versions(frame),
            _dirty(values),
            _twice(frame),
            _empty(found),
            _unknown(frame),
            _alone(found),
        ]
        if s
    ]


def _values(frame: pd.DataFrame) -> dict[str, Counter[str]]:
    counts = Counter(frame["provenance_json"])
    values: dict[str, Counter[str]] = {}
    for text, times in counts.items():
        for name, value in _flat(json.loads(text)).items():
            values.setdefault(name, Counter())[value] += times
    return values


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


def _twice(frame: pd.DataFrame) -> str:
    count = int(frame.duplicated("key").sum())
    other = frame.drop_duplicates(["key", "status", "samples_json"])
    differ = int(other.loc[other.duplicated("key"), "key"].nunique())
    said = f", and {plural(differ, 'key')} has other results" if differ else ""
    return f"{plural(count, 'record')} too many: of those with the same key the last was used{said}." if count else ""


def _versions(frame: pd.DataFrame) -> list[str]:
    # results of another version answer another question, though the row has the same name
    seen: dict[tuple[str, str], Counter[str]] = {}
    for text in frame["cell_json"]:
        spec = json.loads(text)
        for part in ("method", "task"):
            seen.setdefault((part, spec[part]["name"]), Counter())[str(spec[part]["version"])] += 1
    return [
        said
        for (part, name), values in sorted(seen.items())
        if (said := _mixed(values, f"versions of the {part} {name}"))
    ]


def _empty(found: pd.DataFrame) -> str:
    empty = found[(found["status"] == "ok") & found["value"].isna()]
    text = ", ".join(f"{m} ({h})" for m, h in zip(empty["method_label"][:MOST], empty["heading"][:MOST], strict=True))
    return f"{plural(len(empty), 'result')} ended well and has no number: {text}." if len(empty) else ""


def _unknown(frame: pd.DataFrame) -> str:
    missing = sorted(set(frame["task"]) - set(names("tasks")))
    return f"This version has no file for the tasks {', '.join(missing)}; their cells are not shown." if missing else ""


def _alone(found: pd.DataFrame) -> str:
    alone = found[~found["is_dense"].astype(bool) & found["value"].notna() & found["change"].isna()]
    text = ", ".join(f"{m} ({h})" for m, h in zip(alone["method_label"][:MOST], alone["heading"][:MOST], strict=True))
    return (
        f"{plural(len(alone), 'result')} without a dense cell on the same samples to compare with: {text}."
        if len(alone)
        else ""
    )
