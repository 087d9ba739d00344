"""Needle in a haystack."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from ...results.fields import Data, Within
from ..lm import Session
from ..task import Outcome, Task, read_corpus

THINGS = ("secret number", "magic number", "secret code")
STOPS = (".", "?", "!")
CITIES = ("Paris", "London", "Rome", "Berlin", "Athens", "Lisbon", "Dublin", "Vienna", "Madrid", "Cairo")


@dataclass(frozen=True)
class Needle(Task):
    """A fact of five digits is planted in prose at several depths; is it found, digit for digit?

    The text is exactly `length` tokens long with its question. The needle stands after the sentence that ends before
    its depth. Score: 1 when the greedy answer's first five digits are the fact's, else 0.

    Arguments: `length` tokens; `depths` places between 0 (start) and 1 (end); `repeats` needles at each depth;
    `haystack` a corpus.
    """

    length: Annotated[int, Within(128)] = 1024
    depths: tuple[Annotated[float, Within(0, 1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    repeats: Annotated[int, Within(1)] = 4
    haystack: Annotated[str, Data("harness/data")] = "prose"
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def run(self, session: Session) -> Outcome:
        """Plant, ask, compare; one sample a needle."""
        hay = [session.encode(d.text) for d in read_corpus(self.haystack)]
        grid = [(depth, repeat) for depth in self.depths for repeat in range(self.repeats)]
        plants = [self._plant(session, hay, depth, repeat) for depth, repeat in grid]
        answer_length = max(len(session.encode(f" {p.answer}")) for p in plants)
        replies = session.generate([p.context for p in plants], [p.question for p in plants], answer_length + 1)
        samples = [
            self._sample(place, plant, session.decode(reply))
            for place, plant, reply in zip(grid, plants, replies, strict=True)
        ]
        return Outcome({"accuracy": sum(s["score"] for s in samples) / len(samples), "needles": len(samples)}, samples)

    def _sample(self, place: tuple[float, int], plant: Plant, reply: str) -> dict[str, Any]:
        found = "".join(c for c in reply if c.isdigit())[: len(plant.answer)] == plant.answer
        where = {"length": self.length, "depth": place[0], "repeat": place[1], "placed": plant.placed}
        return {**where, "score": int(found), "answer": plant.answer, "reply": reply}

    def _plant(self, session: Session, hay: Sequence[list[int]], depth: float, repeat: int) -> Plant:
        """A text and its question; the same for every method."""
        dice = random.Random(f"{session.cell.seed}-{self.length}-{depth}-{repeat}")  # noqa: S311 - no secret
        thing, city, answer = dice.choice(THINGS), dice.choice(CITIES), f"{dice.randrange(10**5):05d}"
        needle = session.encode(f" The {thing} of {city} is {answer}.")
        question = session.encode(f"\n\nWhat is the {thing} of {city}? The {thing} of {city} is")
        room = self.length - len(needle) - len(question)
        text = self._slice(hay, dice, room)
        at = self._after_sentence(session, text, round(depth * room))
        context = [*text[:at], *needle, *text[at:]]
        return Plant(context, question, answer, at / len(context))

    def _slice(self, hay: Sequence[list[int]], dice: random.Random, room: int) -> list[int]:
        """`room` tokens of prose from a random place; books follow one another where one is too short."""
        start = dice.randrange(len(hay))
        joined = [t for i in range(len(hay)) for t in hay[(start + i) % len(hay)]]
        if room < 1 or len(joined) < room:
            raise ValueError(f"a haystack of {room} tokens cannot be cut from {self.haystack!r} ({len(joined)} tokens)")
        first = dice.randrange(min(len(joined) - room, len(hay[start])) + 1)
        return joined[first : first + room]

    @staticmethod
    def _after_sentence(session: Session, text: list[int], at: int) -> int:
        """The last place up to `at` that follows the end of a sentence, or 0."""
        ends = (i for i in range(at, 0, -1) if session.decode(text[i - 1 : i]).rstrip("\"' \n")[-1:] in STOPS)
        return next(ends, 0)


class Plant(NamedTuple):
    """Context and question in tokens, the answer, and the share of the context that stands before the needle."""

    context: list[int]
    question: list[int]
    answer: str
    placed: float
