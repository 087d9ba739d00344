"""Scores of answers: overlap, edit distance, lists. Those of kept libraries where there are such."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # noqa: PLC0415 - it takes a second to import

    return rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)


def rouge1_tenths(truth: str, answer: str) -> float:
    """Ten times the F of ROUGE-1 with stemming (rouge_score), as the needle runner of KVCache-Factory has it."""
    return float(10 * _rouge_scorer().score(truth, answer)["rouge1"].fmeasure)


def word_recall(truth: str, answer: str) -> float:
    """Share of the truth's different words, without case, that the answer has; punctuation belongs to its word."""
    wanted, found = set(truth.lower().split()), set(answer.lower().split())
    return len(wanted & found) / len(wanted)


def found_all(truths: Sequence[str], answer: str) -> float:
    """Share of the truths that stand in the answer, without case (RULER's score)."""
    text = answer.lower()
    return sum(t.lower() in text for t in truths) / len(truths)


def found_one(truths: Sequence[str], answer: str) -> float:
    """1 where one of the truths stands in the answer, without case (RULER's score of questions)."""
    return float(any(t.lower() in answer.lower() for t in truths))
