"""Prose of an exact number of tokens, with facts planted between its sentences."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from .lm import Session
from .task import read_corpus

STOPS = (".", "?", "!")


class Haystack:
    """The documents of a corpus in tokens, one after another in a ring."""

    def __init__(self, session: Session, corpus: str) -> None:
        self.session, self.corpus = session, corpus
        self.documents = [session.encode(d.text) for d in read_corpus(corpus)]
        self.starts = [0, *accumulate(map(len, self.documents))]

    def prose(self, dice: random.Random, tokens: int) -> list[int]:
        """So many tokens from a random place of a random document; documents follow one another.

        Raises:
            ValueError: the corpus is shorter.
        """
        total = self.starts[-1]
        if tokens < 1 or total < tokens:
            raise ValueError(
                f"a haystack of {tokens} tokens cannot be cut from {self.corpus!r} ({total} tokens): "
                "change length, or give a longer haystack"
            )
        number = dice.randrange(len(self.documents))
        first = dice.randrange(min(total - tokens, len(self.documents[number])) + 1)
        return self._take((self.starts[number] + first) % total, tokens)

    def _take(self, place: int, tokens: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < tokens:
            number = bisect_right(self.starts, place % self.starts[-1]) - 1
            inside = place % self.starts[-1] - self.starts[number]
            taken += self.documents[number][inside : inside + tokens - len(taken)]
            place = self.starts[number + 1]
        return taken


def after_sentence(session: Session, text: Sequence[int], at: int) -> int:
    """The last place up to `at` that follows the end of a sentence, or 0."""
    ends = (i for i in range(at, 0, -1) if session.decode(text[i - 1 : i]).rstrip("\"' \n")[-1:] in STOPS)
    return next(ends, 0)


def plant(
    session: Session, text: Sequence[int], facts: Iterable[tuple[float, Sequence[int]]]
) -> tuple[list[int], list[float]]:
    """Text with each fact after the sentence that ends before its depth; and where each fact begins, as a share.

    Args:
        session: knows how tokens read.
        text: prose.
        facts: depth between 0 (start) and 1 (end), and the tokens to be planted.
    """
    places = [(after_sentence(session, text, round(depth * len(text))), list(fact)) for depth, fact in facts]
    order = sorted(range(len(places)), key=lambda i: places[i][0])
    planted: list[int] = []
    starts, done = [0] * len(places), 0
    for i in order:
        at, fact = places[i]
        planted += [*text[done:at]]
        starts[i] = len(planted)
        planted += fact
        done = at
    planted += text[done:]
    return planted, [start / len(planted) for start in starts]
