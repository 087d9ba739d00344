"""Evaluation sets as people pass them on in files, in the columns that lm-eval's tasks have from the Hub.

Rows that have those columns already are taken as they are. For the other layouts see docs/evaluations.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from .rows import Row, check_row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Layout:
    """Columns of the Hub's set, columns of the files, and how a row of a file becomes one of the Hub."""

    hub: tuple[str, ...]
    file: tuple[str, ...]
    convert: Callable[[Row], Row]


def in_hub_columns(task: str, name: str, rows: Sequence[Row], subset: str) -> list[Row]:
    """Rows of a file as the task of lm-eval wants them; `subset` is its dataset_name (a subject of MMLU).

    Raises:
        ValueError: a row has neither the Hub's columns nor those of a known layout, or the subset has no row.
    """
    if rows and "subject" in rows[0] and subset:
        rows = [row for row in rows if row["subject"] == subset]
        if not rows:
            raise ValueError(f"{name} has no row whose subject is {subset!r}")
    layout = next((LAYOUTS[key] for key in LAYOUTS if task.startswith(key)), None)
    if layout is None or all(column in rows[0] for column in layout.hub):
        return list(rows)
    for number, row in enumerate(rows, 1):
        check_row(name, number, row, layout.file)
    return [layout.convert(row) for row in rows]


def _lettered(row: Row) -> Mapping[str, Any]:
    letters = list(LETTERS[: len(row["choices"])])
    return {"choices": {"text": list(row["choices"]), "label": letters}, "answerKey": letters[row["gold"]]}


def _arc(row: Row) -> Row:
    return {"question": row["query"].removeprefix("Question: "), **_lettered(row)}


def _openbookqa(row: Row) -> Row:
    return {"question_stem": row["query"], **_lettered(row)}


def _hellaswag(row: Row) -> Row:
    activity, _, context = row["ctx"].partition(": ")
    endings = list(row["endings"])
    return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": endings, "label": str(row["label"])}


def _winogrande(row: Row) -> Row:
    first, second = row["context_options"]
    alike = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    same = alike[: alike.rfind(" ") + 1]  # names may begin alike
    return {
        "sentence": f"{same}_ {row['continuation']}",
        "option1": first[len(same) :],
        "option2": second[len(same) :],
        "answer": str(row["gold"] + 1),
    }


def _piqa(row: Row) -> Row:
    goal = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:").strip()
    return {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def _boolq(row: Row) -> Row:
    found = re.fullmatch(r"Passage: (.*)\nQuestion: (.*?)\??\s*", row["query"], re.DOTALL)
    if not found:
        raise ValueError(f"a row of BoolQ begins {row['query'][:40]!r}, expected Passage: ..., then Question: ...")
    yes = [choice.strip().lower() for choice in row["choices"]].index("yes")
    return {"passage": found[1], "question": found[2], "label": int(row["gold"] == yes)}


def _lambada(row: Row) -> Row:
    return {"text": f"{row['context']} {row['continuation']}"}


def _truthfulqa(row: Row) -> Row:
    """From the authors' table; the Hub's set gives each answer a full stop."""
    best, good, bad = (_answers(row[c]) for c in ("Best Answer", "Correct Answers", "Incorrect Answers"))
    return {
        "question": row["Question"],
        "mc1_targets": {"choices": [*best[:1], *bad], "labels": [1, *[0] * len(bad)]},
        "mc2_targets": {"choices": [*good, *bad], "labels": [*[1] * len(good), *[0] * len(bad)]},
    }


def _answers(listed: str) -> list[str]:
    parts = (part.strip() for part in listed.split(";"))
    return [part if part.endswith(".") else f"{part}." for part in parts if part]


def _same(row: Row) -> Row:
    return row


CHOICES = ("query", "choices", "gold")
LAYOUTS: Mapping[str, Layout] = {
    "arc_": Layout(("question", "choices", "answerKey"), CHOICES, _arc),
    "boolq": Layout(("passage", "question", "label"), CHOICES, _boolq),
    "gsm8k": Layout(("question", "answer"), ("question", "answer"), _same),
    "hellaswag": Layout(("activity_label", "ctx_a", "ctx_b"), ("ctx", "endings", "label"), _hellaswag),
    "lambada": Layout(("text",), ("context", "continuation"), _lambada),
    "mmlu": Layout(("question", "choices", "answer"), ("question", "choices", "answer"), _same),
    "openbookqa": Layout(("question_stem",), CHOICES, _openbookqa),
    "piqa": Layout(("goal", "sol1", "sol2"), CHOICES, _piqa),
    "truthfulqa_mc": Layout(
        ("mc1_targets", "mc2_targets"),
        ("Question", "Best Answer", "Correct Answers", "Incorrect Answers"),
        _truthfulqa,
    ),
    "winogrande": Layout(("sentence", "option1", "option2"), ("context_options", "continuation", "gold"), _winogrande),
}
