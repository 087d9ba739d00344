"""RULER: thirteen kinds of questions about long contexts, made to measure, without a download."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ...results.fields import Data, Within
from ..generation import Question, Reply, Rule, ask, scored
from ..haystack import Haystack
from ..lm import Session
from ..ruler.lists import Common, Frequent, Variables
from ..ruler.niah import Niah
from ..ruler.page import Page
from ..ruler.questions import Questions
from ..scores import found_all, found_one
from ..task import Outcome, Task


@dataclass(frozen=True)
class Ruler(Task):
    """One of RULER's thirteen kinds (arXiv 2404.06654): needles, variables, frequent words, questions; seeded, offline.

    Prompt and answer together have at most `length` tokens. Score: the share of the wanted texts that stand in the
    answer, without case; of qa, whether one does. Prompts are RULER's but for the worked example of vt and cwe, which
    is left out; prose is cut from `haystack`, not from its essays.

    Arguments: `kind`; `length` tokens; `samples`; `haystack` a corpus; `documents` for qa: rows with `question`,
    `answers` and `context` (a text or a list of texts), as of SQuAD or HotpotQA; none: people and towns that are made
    up.
    """

    kind: Literal[
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
        "niah_multikey_1",
        "niah_multikey_2",
        "niah_multikey_3",
        "niah_multivalue",
        "niah_multiquery",
        "vt",
        "cwe",
        "fwe",
        "qa_1",
        "qa_2",
    ] = "niah_single_1"
    length: Annotated[int, Within(256)] = 2048
    samples: Annotated[int, Within(1)] = 50
    haystack: Annotated[str, Data("harness/data", ("text",))] = "prose"
    documents: Annotated[str, Data("harness/data", ("question", "answers", "context"))] | None = None
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "accuracy"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        if self.documents is not None and not self.kind.startswith("qa"):
            raise ValueError(f"ruler: documents are for qa_1 and qa_2, {self.kind} has none: leave them out")

    def run(self, session: Session) -> Outcome:
        """Make, ask, look for what was wanted."""
        hay = Haystack(session, self.haystack)
        questions = [self.question(session, hay, number) for number in range(self.samples)]
        samples = ask(session, questions, Rule(KINDS[self.kind].new), self._judge)
        return scored(samples)

    def question(self, session: Session, hay: Haystack, number: int) -> Question:
        """The number-th sample; the same for every method."""
        dice = random.Random(f"{session.cell.seed}-{self.kind}-{self.length}-{number}")  # noqa: S311 - no secret
        kind = KINDS[self.kind]
        draft = kind.draft(Page(session, self.length - kind.new, dice, hay, self.documents))
        return Question(f"{self.kind}-{self.length}-{number}", draft.context, (draft.question,), draft.answers)

    def _judge(self, question: Question, reply: Reply) -> Mapping[str, Any]:
        score = found_one if self.kind.startswith("qa") else found_all
        wanted = list(question.facts)
        return {"length": self.length, "score": score(wanted, reply.text), "answer": wanted, "reply": reply.text}


KINDS: Mapping[str, Niah | Variables | Common | Frequent | Questions] = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("prose"),
    "niah_single_3": Niah("prose", value="uuids"),
    "niah_multikey_1": Niah("prose", keys=4),
    "niah_multikey_2": Niah("needles"),
    "niah_multikey_3": Niah("needles", key="uuids", value="uuids"),
    "niah_multivalue": Niah("prose", values=4),
    "niah_multiquery": Niah("prose", keys=4, asked=4),
    "vt": Variables(),
    "cwe": Common(),
    "fwe": Frequent(),
    "qa_1": Questions(1),
    "qa_2": Questions(2),
}
