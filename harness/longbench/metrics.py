"""LongBench's metrics (arXiv 2308.14508), of an answer against one truth, between 0 and 1.

ROUGE-L is that of the package `rouge`, which counts a word once however often it comes; edit similarity is
rapidfuzz's ratio (insertions and deletions, as of fuzzywuzzy with python-Levenshtein); Chinese words are jieba's.
"""

from __future__ import annotations

import functools
import logging
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Metric = Callable[[str, str, Sequence[str]], float]


def f1(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Overlap of words without case, punctuation and articles."""
    del classes
    return _overlap(_words(answer), _words(truth))


def f1_zh(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """The same of jieba's words, without punctuation."""
    del classes
    return _overlap(_words_zh(answer), _words_zh(truth))


def rouge_l(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """F of the longest common subsequence of words; 0 where one of both has none."""
    del classes
    if not answer.strip(" .\n") or not truth.strip(" .\n"):
        return 0.0
    return float(_rouge().get_scores([answer], [truth], avg=True)["rouge-l"]["f"])


def rouge_l_zh(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """The same of jieba's words."""
    del classes
    return rouge_l(" ".join(_cut(answer)), " ".join(_cut(truth)))


def one_class(answer: str, truth: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the answer names, if the right one is among them; parts of it do not count."""
    named = [c for c in classes if c in answer and not (c in truth and c != truth)]
    return 1 / len(named) if truth in named else 0.0


def count(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Share of the answer's numbers that are the right one."""
    del classes
    numbers = re.findall(r"\d+", answer)
    return numbers.count(truth.strip()) / len(numbers) if numbers else 0.0


def paragraph(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """The same, of a truth such as Paragraph 7."""
    del classes
    return count(answer, re.findall(r"Paragraph (\d+)", truth)[0])


def paragraph_zh(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """The same in Chinese."""
    del classes
    return count(answer, re.findall(r"段落(\d+)", truth)[0])


def code(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Similarity of the answer's first line that is neither a comment nor a fence."""
    from rapidfuzz import fuzz  # noqa: PLC0415 - one metric of many

    del classes
    lines = answer.lstrip("\n").split("\n")
    first = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(fuzz.ratio(first, truth)) / 100  # in whole percent, as there


METRICS: Mapping[str, Metric] = {
    "classes": one_class,
    "code": code,
    "count": count,
    "f1": f1,
    "f1_zh": f1_zh,
    "paragraph": paragraph,
    "paragraph_zh": paragraph_zh,
    "rouge_l": rouge_l,
    "rouge_l_zh": rouge_l_zh,
}


def _overlap(answer: Sequence[str], truth: Sequence[str]) -> float:
    same = sum((Counter(answer) & Counter(truth)).values())
    return 2 * same / (len(answer) + len(truth)) if same else 0.0


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _words_zh(text: str) -> list[str]:
    cleaned = ("".join(c for c in word.lower() if unicodedata.category(c)[0] not in "PSZC") for word in _cut(text))
    return [word for word in cleaned if word]


def _cut(text: str) -> list[str]:
    import jieba  # noqa: PLC0415 - it reads its dictionary when it is first used

    jieba.setLogLevel(logging.ERROR)
    return list(jieba.cut(text, cut_all=False))


@functools.cache
def _rouge() -> Any:
    from rouge import Rouge  # noqa: PLC0415 - one metric of many

    return Rouge(metrics=["rouge-l"])
