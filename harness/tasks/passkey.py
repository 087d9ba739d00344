"""Passkey retrieval by token length."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ...results.fields import Within
from ..generation import Question, Reply, Rule, ask, scored
from ..lm import Session
from ..task import Outcome, Task

HEAD = "A pass key is hidden in the text below, which means nothing otherwise. Find it and remember it.\n"
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ASK = "\nWhat is the pass key? The pass key is"


@dataclass(frozen=True)
class Passkey(Task):
    """A number between lines that say nothing: is it the first integer of the answer?

    The source (Landmark, arXiv 2305.16300) counts characters and draws without a seed; here the prompt has exactly
    `length` tokens, and each key is between 1 and 50000 at a random place, seeded.

    Arguments: `length` tokens; `samples`; `new` tokens of the answer.
    """

    length: Annotated[int, Within(64)] = 1024
    samples: Annotated[int, Within(1)] = 50
    new: Annotated[int, Within(1)] = 10
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def run(self, session: Session) -> Outcome:
        """Hide, ask, compare."""
        questions = [self.question(session, number) for number in range(self.samples)]
        samples = ask(session, questions, Rule(self.new), self._judge)
        return scored(samples)

    def question(self, session: Session, number: int) -> Question:
        """The number-th prompt, the same for every method."""
        dice = random.Random(f"{session.cell.seed}-{self.length}-{number}")  # noqa: S311 - no secret
        key = dice.randrange(1, 50001)
        head, ask_ = session.encode(HEAD), session.encode(ASK)
        fact = session.encode(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
        room = self.length - len(head) - len(fact) - len(ask_)
        if room < 0:
            raise ValueError(f"a passkey needs {self.length - room} tokens at least: raise length")
        first = session.encode(FILLER)
        line = session.encode(f" {FILLER}")
        filler = (first + line * (room // len(line) + 1))[:room]
        before = dice.randrange(room + 1)
        context = [*head, *filler[:before], *fact, *filler[before:]]
        return Question(f"{self.length}-{number}", context, (ask_,), {"key": key, "placed": before / max(1, room)})

    def _judge(self, question: Question, reply: Reply) -> Mapping[str, Any]:
        found = re.search(r"\d+", reply.text)
        score = int(found is not None and int(found[0]) == question.facts["key"])
        where = {"length": self.length, "depth": round(question.facts["placed"], 3)}
        return {**where, "score": score, "answer": question.facts["key"], "reply": reply.text}
