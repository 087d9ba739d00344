"""LongBench, its 21 tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ...results.fields import Data, Within
from ..chat import in_chat
from ..generation import Question, Reply, Rule, ask, output
from ..lm import Session
from ..longbench.metrics import METRICS
from ..rows import Row, read_rows
from ..task import Outcome, Task

PROMPTS = Path(__file__).resolve().parent.parent / "longbench" / "prompts.json"
BINS = (("0_4k", 0, 4000), ("4_8k", 4000, 8000), ("8k_up", 8000, float("inf")))  # words, as LongBench-E has them


@dataclass(frozen=True)
class LongBench(Task):
    """One of LongBench's 21 tasks (arXiv 2308.14508): prompts, answer lengths and metrics of its repository.

    A prompt longer than `length` loses its middle: its first and last half are kept, in tokens, as in its repository.
    Score: 100 times the metric against the best of the truths. Rows of LongBench-E, whose `length` in words spreads
    evenly, are also averaged by its bins. What is asked after the context is fed as rows where the cell is not
    query-aware.

    Arguments: `task`; `data`: rows with `context`, `input`, `answers`, `all_classes` (LongBench) or `prompt` and `gold`
    (MiniLongBench, all tasks in one file); `limit` rows; `length` tokens of a prompt (none: what the model's context
    leaves); `chat`: the model's chat format, but where LongBench has none (trec, triviaqa, samsum, lsht, lcc,
    repobench-p); `newline`: whether the end of a line ends an answer of samsum, as its repository has it, of every
    task, or of none.
    """

    task: Literal[
        "narrativeqa",
        "qasper",
        "multifieldqa_en",
        "multifieldqa_zh",
        "hotpotqa",
        "2wikimqa",
        "musique",
        "dureader",
        "gov_report",
        "qmsum",
        "multi_news",
        "vcsum",
        "trec",
        "triviaqa",
        "samsum",
        "lsht",
        "passage_count",
        "passage_retrieval_en",
        "passage_retrieval_zh",
        "lcc",
        "repobench-p",
    ]
    data: Annotated[str, Data("harness/data", ("context", "input", "answers"), ("task", "prompt", "gold"))]
    limit: Annotated[int, Within(1)] | None = None
    length: Annotated[int, Within(64)] | None = None
    chat: Literal["none", "model"] = "none"
    newline: Literal["samsum", "all", "none"] = "samsum"
    version: ClassVar[int] = 2
    headline: ClassVar[str] = "score"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def run(self, session: Session) -> Outcome:
        """Ask, and judge by the task's metric."""
        rule = self._rule()
        room = self.length or session.context_length - rule.new
        if room < 64:
            raise ValueError(
                f"answers of {rule.new} tokens leave {room} of the model's context for a prompt: set length"
            )
        questions = [self._question(session, number, row, room) for number, row in enumerate(self._rows())]
        samples = ask(session, questions, rule, self._judge)
        return Outcome(self._metrics(samples), samples)

    @property
    def _about(self) -> Mapping[str, Any]:
        about: Mapping[str, Any] = json.loads(PROMPTS.read_text(encoding="utf-8"))[self.task]
        return about

    def _rule(self) -> Rule:
        ends = self.newline == "all" or (self.newline == "samsum" and self.task == "samsum")
        return Rule(self._about["new"], stops=("\n",) if ends else ())

    def _rows(self) -> list[Row]:
        rows = read_rows(self.data)
        if "prompt" in rows[0]:
            rows = [row for row in read_rows(self.data, ("task", "prompt", "gold")) if row["task"] == self.task]
        else:
            rows = read_rows(self.data, ("context", "input", "answers"))
        if not rows:
            raise ValueError(f"{self.data} has no row of the task {self.task}")
        return list(rows[: self.limit])

    def _question(self, session: Session, number: int, row: Row, room: int) -> Question:
        before, after = _parts(self._about["prompt"], row)
        if self.chat == "model" and not self._about.get("plain"):
            before, after = in_chat(session.lm.tokenizer, before, after)
        asked = session.encode(after)
        whole = [*session.encode(before), *asked]
        facts = {"row": row, "cut": len(whole) > room, "whole": len(whole)}
        half = room // 2
        if len(whole) > room:
            whole = [*whole[:half], *whole[len(whole) - half :]]
            asked = asked[-half:]
        seam = len(whole) - len(asked)
        return Question(f"{self.task}-{row.get('_id', number)}", whole[:seam], (whole[seam:],), facts)

    def _judge(self, question: Question, reply: Reply) -> Mapping[str, Any]:
        row, answer = question.facts["row"], reply.text
        if self._about.get("first_line"):
            answer = answer.lstrip("\n").split("\n")[0]
        truths, classes = _truths(row)
        score = 100 * max(METRICS[self._about["metric"]](answer, truth, classes) for truth in truths)
        told = {"score": score, "answer": truths[:1], "reply": reply.text, "truncated": question.facts["cut"]}
        return {**told, **({"words": int(row["length"])} if "length" in row else {})}

    def _metrics(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        found = {"score": sum(s["score"] for s in samples) / len(samples)}
        for name, low, high in BINS:
            inside = [s["score"] for s in samples if "words" in s and low <= s["words"] < high]
            if inside:
                found[f"score_{name}"] = sum(inside) / len(inside)
        cut = sum(s["truncated"] for s in samples)
        return {**found, "samples": len(samples), "truncated": float(cut), **output(samples)}


def _parts(prompt: str, row: Row) -> tuple[str, str]:
    """What is read before the question is known, and the question."""
    if "prompt" in row:  # made by others: what follows the last empty line is the question, or the last line
        text = row["prompt"]
        at = text.rfind("\n\n")
        at = at if 0 < len(text) - at <= 2000 else text.rstrip("\n").rfind("\n")
        return text[: at + 1], text[at + 1 :]
    before, after = prompt.split("{context}")
    return before + row["context"], after.replace("{input}", row["input"])


def _truths(row: Row) -> tuple[list[str], list[str]]:
    gold = row.get("gold", row.get("answers"))
    if isinstance(gold, dict):
        return list(gold["answers"]), list(gold["all_classes"])
    return list(gold), list(row.get("all_classes") or [])
