"""Key-value retrieval."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ...results.fields import Within
from ..generation import Question, Reply, Rule, ask, scored
from ..lm import Session
from ..task import Outcome, Task

AROUND = 4  # tokens that an answer may have beside its digits


@dataclass(frozen=True)
class Kv(Task):
    """A JSON object of as many random keys and values as fit; the value of one key is asked for (arXiv 2307.03172).

    The object, all questions and room for the answers, each a token a digit and AROUND more, have at most `length`
    tokens. Score: whether the value stands in the answer; with `asked` > 1, the share of turns in which it does, each
    on the cache of those before.

    Arguments: `length` tokens; `samples`; `digits` of keys and values; `asked` keys, turn after turn.
    """

    length: Annotated[int, Within(128)] = 1024
    samples: Annotated[int, Within(1)] = 50
    digits: Annotated[int, Within(2, 36)] = 5
    asked: Annotated[int, Within(1, 8)] = 1
    version: ClassVar[int] = 2
    headline: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def run(self, session: Session) -> Outcome:
        """Write, ask, compare."""
        questions = [self.question(session, number) for number in range(self.samples)]
        samples = ask(session, questions, Rule(self.digits + AROUND, stops=("}", ",")), self._judge)
        return scored(samples)

    def question(self, session: Session, number: int) -> Question:
        """The number-th object, the same for every method."""
        dice = random.Random(f"{session.cell.seed}-{self.length}-{self.digits}-{number}")  # noqa: S311 - no secret
        head = session.encode("Extract the value of the key from the JSON object.\n\n{")
        body: list[int] = []
        pairs: dict[str, str] = {}
        turn = len(session.encode(self._ask("0"))) - 1 + 2 * self.digits + AROUND  # at most a token a digit
        room = self.length - len(head) - self.asked * turn
        while True:
            key, value = (f"{dice.randrange(10**self.digits):0{self.digits}d}" for _ in range(2))
            piece = session.encode(f'"{key}": "{value}",\n')
            if len(body) + len(piece) > room or len(pairs) == 10**self.digits:  # no key is left
                break
            if key not in pairs:
                body += piece
                pairs[key] = value
        if len(pairs) < self.asked:
            raise ValueError(f"{self.length} tokens hold {len(pairs)} keys, {self.asked} are asked for: raise length")
        chosen = dice.sample(sorted(pairs), self.asked)
        turns = tuple(session.encode(self._ask(key)) for key in chosen)
        return Question(f"{self.length}-{number}", [*head, *body], turns, [pairs[key] for key in chosen])

    @staticmethod
    def _ask(key: str) -> str:
        return f'}}\n\nKey: "{key}"\nCorresponding value: "'

    def _judge(self, question: Question, reply: Reply) -> Mapping[str, Any]:
        hits = [value in text for value, text in zip(question.facts, reply.texts, strict=True)]
        score = sum(hits) / len(hits)
        told = {"answer": list(question.facts), "reply": " | ".join(reply.texts)}
        return {"length": self.length, "score": int(score) if score in (0, 1) else score, **told}
