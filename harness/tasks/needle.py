"""Needle in a haystack."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from ...results.fields import Data, Within
from ..generation import Question, Reply, Rule, ask, scored
from ..haystack import Haystack, plant
from ..lm import Session
from ..scores import rouge1_tenths, word_recall
from ..task import Outcome, Task

THINGS = ("secret number", "magic number", "secret code")
CITIES = ("Paris", "London", "Rome", "Berlin", "Athens", "Lisbon", "Dublin", "Vienna", "Madrid", "Cairo")
PAIRS = tuple((thing, city) for thing in THINGS for city in CITIES)


@dataclass(frozen=True)
class Needle(Task):
    """A fact of five digits is planted in prose at several depths; is it found, digit for digit?

    The text has exactly `length` tokens with all questions and with room for the answers, each as long as the longest
    fact's and a token more: no position beyond `length` is asked of the model. A needle stands after the sentence that
    ends before its depth. With `keys` > 1 further facts of other names stand at random depths: only the one that is
    asked for counts (multi-key). With `asked` > 1 so many facts are asked for, turn after turn on the same cache
    (multi-needle, multi-turn), and the score is the share found.

    Arguments: `length` tokens; `depths` places between 0 (start) and 1 (end); `repeats` needles at each depth; `keys`
    facts in the text; `asked` facts asked for; `haystack` a corpus; `score`: "digits", 1 when the greedy answer's first
    five digits are the fact's; "rouge1", ten times the F of ROUGE-1 against the whole fact, and "words", the share of
    the fact's words in the answer, are the two scores of KVCache-Factory's runner and plotter.
    """

    length: Annotated[int, Within(128)] = 1024
    depths: tuple[Annotated[float, Within(0, 1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    repeats: Annotated[int, Within(1)] = 4
    keys: Annotated[int, Within(1, 30)] = 1
    asked: Annotated[int, Within(1, 30)] = 1
    haystack: Annotated[str, Data("harness/data", ("text",))] = "prose"
    score: Literal["digits", "rouge1", "words"] = "digits"
    version: ClassVar[int] = 3
    headline: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        if self.asked > self.keys:
            raise ValueError(f"needle: asked is {self.asked}, but keys plants {self.keys} facts: raise keys")

    def run(self, session: Session) -> Outcome:
        """Plant, ask, compare; one sample a text."""
        hay = Haystack(session, self.haystack)
        drawn = [self.drawn(session, depth, repeat) for depth in self.depths for repeat in range(self.repeats)]
        new = 1 + max(len(session.encode(f" {fact.answer}")) for one in drawn for fact in one.facts[: self.asked])
        questions = [self.question(session, hay, one, new) for one in drawn]
        samples = ask(session, questions, Rule(new, to_the_end=False), partial(self._judge))
        return scored(samples, "needles")

    def drawn(self, session: Session, depth: float, repeat: int) -> Drawn:
        """The facts of a place of the grid; the same for every method."""
        dice = random.Random(f"{session.cell.seed}-{self.length}-{depth}-{repeat}")  # noqa: S311 - no secret
        facts = [Fact(*pair, f"{dice.randrange(10**5):05d}") for pair in dice.sample(PAIRS, self.keys)]
        return Drawn(depth, repeat, facts, [depth, *(dice.random() for _ in facts[1:])], dice)

    def question(self, session: Session, hay: Haystack, drawn: Drawn, new: int) -> Question:
        """The facts in their text, and their questions, of which each is answered with `new` tokens."""
        asked = drawn.facts[: self.asked]
        turns = tuple(session.encode(fact.question) for fact in asked)
        needles = [session.encode(fact.sentence) for fact in drawn.facts]
        taken = sum(map(len, [*needles, *turns])) + new * len(turns)
        if taken >= self.length:
            raise ValueError(f"needle: facts, questions and answers take {taken} of {self.length} tokens: raise length")
        prose = hay.prose(drawn.dice, self.length - taken)
        context, places = plant(session, prose, zip(drawn.depths, needles, strict=True))
        where = {"length": self.length, "depth": drawn.depth, "repeat": drawn.repeat, "placed": places[0]}
        return Question(f"{self.length}-{drawn.depth}-{drawn.repeat}", context, turns, Asked(asked, where))

    def _judge(self, question: Question, reply: Reply) -> Mapping[str, Any]:
        facts = question.facts.facts
        scores = [SCORES[self.score](fact, text) for fact, text in zip(facts, reply.texts, strict=True)]
        told = {"answer": ", ".join(f.answer for f in facts), "reply": " | ".join(reply.texts)}
        score = sum(scores) / len(scores)
        return {**question.facts.where, "score": int(score) if score in (0, 1) else score, **told}


class Fact(NamedTuple):
    """What is planted, and how it is asked for."""

    thing: str
    city: str
    answer: str

    @property
    def sentence(self) -> str:
        """As it stands in the text."""
        return f" The {self.thing} of {self.city} is {self.answer}."

    @property
    def question(self) -> str:
        """As it is asked for."""
        return f"\n\nWhat is the {self.thing} of {self.city}? The {self.thing} of {self.city} is"


class Drawn(NamedTuple):
    """What a text is made of: its place in the grid, facts, first those asked for, their depths, dice for the rest."""

    depth: float
    repeat: int
    facts: Sequence[Fact]
    depths: Sequence[float]
    dice: random.Random


class Asked(NamedTuple):
    """The facts that are asked for, and which place of the grid this is."""

    facts: Sequence[Fact]
    where: Mapping[str, Any]


def _digits(fact: Fact, text: str) -> float:
    return float("".join(re.findall(r"\d", text))[: len(fact.answer)] == fact.answer)


SCORES = {
    "digits": _digits,
    "rouge1": lambda fact, text: rouge1_tenths(fact.sentence, text),
    "words": lambda fact, text: word_recall(f"{fact.answer}.", text),
}
