"""Records by columns: what all of them have is read at once, texts are read for those that are shown.

A Parquet file of a million records holds gigabytes of JSON. A survey of it needs the identity, status and measures of
each record, and each distinct model, method, task and provenance once; samples and ledgers are decoded for chosen rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from . import frame as frames

BATCH = 8192  # rows whose texts are held at once
PARTS = ("model", "method", "task")
CUTS = (',"method":{"name":', ',"task":{"name":', ',"dtype":')  # a cell is written with its fields in one order
NEEDED = {"name": str, "version": int, "args": dict}


@dataclass(frozen=True)
class Archive:
    """Records of which the texts are still to be read.

    Attributes:
        lean: one row per record, without the columns of JSON and traces; texts that repeat are categories.
        specs: of model, method and task: each distinct one, as the cell has it.
        codes: [rows] which of them a record has; -1 where its cell is of another schema.
        provenance: each distinct provenance, with the number of its records.
        load: the whole rows at some places (ascending), as `frame.read` gives them.
    """

    lean: pd.DataFrame
    specs: dict[str, list[dict[str, Any]]]
    codes: dict[str, NDArray[np.int64]]
    provenance: Counter[str]
    load: Callable[[NDArray[np.int64]], pd.DataFrame]

    def where(self, kept: NDArray[np.bool_]) -> Archive:
        """The records of some rows (their provenance is that of the whole file)."""
        places = np.flatnonzero(kept)
        codes = {part: codes[places] for part, codes in self.codes.items()}
        lean = self.lean.iloc[places].reset_index(drop=True)
        return Archive(lean, self.specs, codes, self.provenance, lambda chosen: self.load(places[chosen]))


def of_frame(frame: pd.DataFrame) -> Archive:
    """The same of a table that is in memory already."""
    whole = frame.reset_index(drop=True)
    specs, codes = _specs([pa.array(whole["cell_json"].astype(object), pa.string())])
    counts = Counter(map(str, whole["provenance_json"]))
    return Archive(whole, specs, codes, counts, lambda places: whole.iloc[places])


def join(archives: Sequence[Archive]) -> Archive:
    """Several archives as one, in their order."""
    if len(archives) == 1:
        return archives[0]
    lean = pd.concat([one.lean.astype(_plain(one.lean)) for one in archives], ignore_index=True)
    ends = np.cumsum([0, *(len(one.lean) for one in archives)])
    specs: dict[str, list[Any]] = {part: [s for one in archives for s in one.specs[part]] for part in PARTS}
    codes = {part: _renumbered(archives, part, specs[part]) for part in PARTS}
    provenance = sum((one.provenance for one in archives), Counter[str]())

    def load(places: NDArray[np.int64]) -> pd.DataFrame:
        spans = zip(archives, ends[:-1], ends[1:], strict=True)
        parts = [one.load(places[(places >= a) & (places < b)] - a) for one, a, b in spans]
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

    return Archive(lean, specs, codes, provenance, load)


def _plain(lean: pd.DataFrame) -> dict[str, str]:
    # categories of two files differ
    return {str(name): "str" for name, kind in lean.dtypes.items() if isinstance(kind, pd.CategoricalDtype)}


def _renumbered(archives: Sequence[Archive], part: str, every: list[Any]) -> NDArray[np.int64]:
    # one number for equal specs, whichever file they come from
    texts = [json.dumps(spec, sort_keys=True) for spec in every]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    to, start, found = np.array([*(first[text] for text in texts), -1], dtype=np.int64), 0, []
    for one in archives:
        own = one.codes[part]
        found.append(to[np.where(own < 0, len(texts), own + start)])
        start += len(one.specs[part])
    return np.concatenate(found)


def open_parquet(path: Path) -> Archive:
    """An archive of a Parquet file as `frame.write` makes it.

    Raises:
        ValueError: the file is not such a table.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(frames.unreadable(path, error)) from error
    names = file.schema_arrow.names
    frames.check(names, path)
    kinds = {name: file.schema_arrow.field(name).type for name in names}
    texts = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    lean = [name for name in names if name not in frames.TEXTS]
    table = pq.read_table(path, columns=lean, read_dictionary=[n for n in texts if n in lean and n != "key"])
    specs, codes = _specs(_column(file, "cell_json"))
    counts = Counter[str]()
    for batch in _column(file, "provenance_json"):
        counts.update({str(item["values"]): int(item["counts"]) for item in pc.value_counts(batch).to_pylist()})
    return Archive(table.to_pandas(), specs, codes, counts, lambda places: _rows(file, places))


def _column(file: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    return (batch.column(0).cast(pa.string()) for batch in file.iter_batches(BATCH, columns=[name]))


def _rows(file: pq.ParquetFile, places: NDArray[np.int64]) -> pd.DataFrame:
    kept, first = [], 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if ((places >= first) & (places < first + count)).any():
            kept += _in_group(file, group, places - first)
        first += count
    schema = file.schema_arrow
    rows: pd.DataFrame = pa.Table.from_batches(kept, schema.remove_metadata()).to_pandas()
    return rows


def _in_group(file: pq.ParquetFile, group: int, places: NDArray[np.int64]) -> list[pa.RecordBatch]:
    kept, first = [], 0
    for batch in file.iter_batches(BATCH, row_groups=[group]):
        inside = places[(places >= first) & (places < first + batch.num_rows)] - first
        if len(inside):
            kept.append(batch.take(pa.array(inside)).replace_schema_metadata(None))
        first += batch.num_rows
    return kept


def _specs(batches: Iterator[pa.Array] | Sequence[pa.Array]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    known: dict[str, dict[str, int]] = {part: {} for part in PARTS}
    codes: dict[str, list[NDArray[np.int64]]] = {part: [] for part in PARTS}
    for batch in batches:
        for part, texts in _cut(batch).items():
            coded = texts.dictionary_encode()
            order = [known[part].setdefault(str(text), len(known[part])) for text in coded.dictionary.to_pylist()]
            codes[part].append(np.array([*order, -1], dtype=np.int64)[coded.indices.fill_null(-1).to_numpy()])
    specs = {part: [_spec(text) for text in texts] for part, texts in known.items()}
    none = np.empty(0, dtype=np.int64)
    whole = {part: np.concatenate([none, *found]) for part, found in codes.items()}
    sound = np.ones(len(whole["task"]), dtype=bool)
    for part in PARTS:
        good = np.array([*(spec is not None for spec in specs[part]), False])
        sound &= good[whole[part]]
    return specs, {part: np.where(sound, found, -1) for part, found in whole.items()}


def _cut(cells: pa.Array) -> dict[str, pa.Array]:
    """The texts of model, method and task, cut out where they are written one after the other; else parsed."""
    rest, texts = cells, {}
    for part, cut in zip(PARTS, CUTS, strict=True):
        halves = pc.split_pattern(rest, cut, max_splits=1, reverse=part == "task")
        if pc.any(pc.not_equal(pc.list_value_length(halves), 2)).as_py():
            return _parsed(cells)
        first, rest = pc.list_element(halves, 0), pc.list_element(halves, 1)
        texts[part] = first if part == "model" else pc.binary_join_element_wise('{"name":', first, "")
    texts["model"] = pc.utf8_slice_codeunits(texts["model"], len('{"model":'))
    return texts if all(map(_whole, texts.values())) else _parsed(cells)


def _whole(texts: pa.Array) -> bool:
    return all(_spec(text) is not None for text in texts.unique().to_pylist())


def _parsed(cells: pa.Array) -> dict[str, pa.Array]:
    raw = [_loaded(text) for text in cells.to_pylist()]
    return {part: pa.array([json.dumps(cell.get(part)) for cell in raw], pa.string()) for part in PARTS}


def _loaded(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _spec(text: str) -> dict[str, Any] | None:
    found = _loaded(text)
    return found if all(isinstance(found.get(name), kind) for name, kind in NEEDED.items()) else None
