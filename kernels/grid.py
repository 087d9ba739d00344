"""Shapes beyond those that every operation is timed on: batches x rows x budgets, to find where a method pays.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R low-rank dims, K kept rows.
"""

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from .op import Case, load_op
from .row import Row


def grid_cases(
    batches: Sequence[int], rows: Sequence[int], parts: Sequence[int], heads: str = "32x8", head_dim: int = 128
) -> tuple[Case, ...]:
    """Make the product of batches, rows and budgets.

    Args:
        batches: Numbers of sequences.
        rows: Rows of a cache.
        parts: Each keeps one row, and scores with one dim, of so many.
        heads: Query heads x KV heads.
        head_dim: D.

    Returns:
        Cases to be timed, the smallest first.

    Raises:
        ValueError: If heads are not two numbers, or a part is larger than the head dim or the rows.
    """
    numbers = heads.split("x")
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"expected heads as QUERYxKV, such as 32x8, got {heads!r}")
    q_heads, kv_heads = map(int, numbers)
    if max(parts) > min(head_dim, *rows):
        raise ValueError(
            f"expected parts of at most {min(head_dim, *rows)}, the dims or rows there are, got {max(parts)}"
        )
    return tuple(
        Case(
            f"b{batch}_h{q_heads}_g{kv_heads}_s{length}_1of{part}", batch, q_heads, kv_heads, length,
            head_dim=head_dim, low_dims=head_dim // part, kept=length // part, visible="full", purpose="time",
        )
        for length, batch, part in sorted(itertools.product(rows, batches, parts), key=lambda one: one[0] * one[1])
    )  # fmt: skip


def break_even_rows(rows: Iterable[dict[str, Any]], name: str) -> dict[tuple[int, int], int | None]:
    """Find from how many rows on a pipeline is faster than the fastest dense kernel, for each batch and budget.

    Args:
        rows: Rows of the bench on a grid, as dictionaries, of one kind of keys.
        name: Of the pipeline.

    Returns:
        (batch, part) -> the smallest S from which on every longer one is faster; nothing if the longest is not.
    """
    found: dict[tuple[int, int], dict[int, float]] = {}
    for row in rows:
        if row["op"] == name and row["speed_up"] is not None and "_1of" in row["case"]:
            batch, part, length = _shape(row["case"])
            found.setdefault((batch, part), {})[length] = float(row["speed_up"])
    return {key: _break_even(gains) for key, gains in found.items()}


def _shape(case: str) -> tuple[int, int, int]:
    """Batch, part and rows of a grid's case."""
    fields = {field[0]: field[1:] for field in case.split("_")}
    return int(fields["b"]), int(fields["1"].removeprefix("of")), int(fields["s"])


def with_break_even(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell each row of a pipeline on a grid from how many rows on its batch and budget gain.

    Args:
        rows: Rows of the bench.

    Returns:
        The same rows, those with `break_even_rows` where there is one.
    """
    kinds = {(row["op"], row["keys"]) for row in rows if row["speed_up"] is not None and "_1of" in row["case"]}
    known = {kind: break_even_rows([row for row in rows if row["keys"] == kind[1]], kind[0]) for kind in sorted(kinds)}
    return [
        row | {"break_even_rows": known[row["op"], row["keys"]].get(_shape(row["case"])[:2])}
        if (row["op"], row["keys"]) in known and "_1of" in row["case"]
        else row
        for row in rows
    ]


def _break_even(gains: dict[int, float]) -> int | None:
    best = None
    for rows in sorted(gains, reverse=True):
        if gains[rows] <= 1:
            break
        best = rows
    return best


def decode_ops(names: Iterable[str]) -> list[str]:
    """Leave out the operations whose cases have another shape than decoding's.

    Args:
        names: Of operations.

    Returns:
        The names of those that a grid can be timed on.
    """
    return [name for name in names if type(load_op(name).cases[0]) is Case]


def write_csv(lines: Iterable[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Write rows to a file, each as soon as it is measured: what was measured outlives a run that is cut off.

    Args:
        lines: What the bench yields.
        path: Of the file.

    Returns:
        The rows.
    """
    written, lines = [], iter(lines)
    first = next(lines, None)  # what is wrong with the question is told before the file of an earlier run is gone
    if first is None:
        return []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = _writer(file)
        for line in itertools.chain((first,), lines):
            writer.writerow(_texts(line))
            file.flush()
            written.append(line)
    told = with_break_even(written)
    if told != written:  # only the whole grid tells from where on a pipeline gains
        beside = path.with_suffix(".part")
        with beside.open("w", newline="", encoding="utf-8") as file:
            _writer(file).writerows(map(_texts, told))
        beside.replace(path)
    return told


def _writer(file: TextIO) -> "csv.DictWriter[str]":
    writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
    writer.writeheader()
    return writer


def _texts(line: dict[str, Any]) -> dict[str, Any]:
    return line | {"samples_ms": " ".join(f"{ms:.6f}" for ms in line["samples_ms"])}
