"""A prompt that is made to measure: pieces of text in tokens, as many of them as fit.

Pieces are encoded one by one and joined as tokens, so that lengths add up and no text is encoded twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..haystack import Haystack
from ..lm import Session

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True)
class Draft:
    """A prompt and what a right answer holds.

    Attributes:
        context: tokens before the question.
        question: tokens of the question, the beginning of the answer among them.
        answers: texts to be found.
    """

    context: list[int]
    question: list[int]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """Where a draft is written: the tokens that it may have, dice, and prose."""

    session: Session
    tokens: int
    dice: random.Random
    hay: Haystack
    documents: str | None = None

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.session.encode(text))

    def draft(self, head: str, body: Sequence[int], tail: str, answers: Iterable[str]) -> Draft:
        """Put together.

        Raises:
            ValueError: it is longer than it may be.
        """
        context, question = [*self.session.encode(head), *body], self.session.encode(tail)
        if len(context) + len(question) > self.tokens:
            raise ValueError(f"{self.tokens} tokens are too few for this kind: raise length")
        return Draft(context, question, tuple(answers))

    def lines(self, head: str, tail: str, fixed: Sequence[str], filler: Callable[[], str]) -> list[int]:
        """Filler lines until the page is full, the fixed ones between them in their order.

        Raises:
            ValueError: the fixed ones alone are too long.
        """
        room = self.tokens - self.size(head) - self.size(tail) - sum(self.size(f"{line}\n") for line in fixed)
        if room < 0:
            raise ValueError(f"{self.tokens} tokens are too few for this kind: raise length")
        lines = []
        while (size := self.size(f"{(line := filler())}\n")) <= room:
            lines.append(line)
            room -= size
        places = sorted(self.dice.randrange(len(lines) + 1) for _ in fixed)
        for place, line in reversed(list(zip(places, fixed, strict=True))):
            lines.insert(place, line)
        return [token for line in lines for token in self.session.encode(f"{line}\n")]

    def prose(self, head: str, tail: str, fixed: Sequence[str]) -> tuple[list[int], list[tuple[float, list[int]]]]:
        """Prose for what is left, and the fixed sentences with depths of their own."""
        facts = [(self.dice.random(), self.session.encode(f" {sentence}")) for sentence in fixed]
        room = self.tokens - self.size(head) - self.size(tail) - sum(len(fact) for _, fact in facts)
        return self.hay.prose(self.dice, room), facts
