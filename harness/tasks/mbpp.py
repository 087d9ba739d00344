"""MBPP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...results import rules
from ...results.fields import Data, Within
from ..code import Problem, Trial
from ..lm import Session
from ..rows import Row, check_row, read_rows
from ..task import Outcome, Task

EXAMPLES = (2, 3, 4)  # the problems that the paper shows before each question


@dataclass(frozen=True)
class Mbpp(Task):
    """Functions written from a sentence and three assertions, and run against those (arXiv 2108.07732).

    The problem's text and tests, then [BEGIN], as in the paper; a program ends at [DONE]. It runs in a sandbox, as
    HumanEval's do. Problems 2, 3 and 4 are the examples and are not asked.

    Arguments: `data` rows of MBPP (`text`, or `prompt` in the sanitized set; `test_list`); `shots` examples before each
    question; all others as in task humaneval.
    """

    data: Annotated[str, Data("harness/data", ("task_id", "test_list"))]
    shots: Annotated[int, Within(0, 3)] = 3
    limit: Annotated[int, Within(1)] | None = None
    draws: Annotated[int, Within(1)] = 1
    ks: tuple[Annotated[int, Within(1)], ...] = (1,)
    temperature: Annotated[float, Within(0)] = 0.0
    top_p: Annotated[float, Within(0, 1, open_low=True)] = 1.0
    new: Annotated[int, Within(1)] = 256
    stops: tuple[str, ...] = ("[DONE]",)
    seconds: Annotated[float, Within(0, open_low=True)] = 5.0
    unsafe: bool = False
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "pass_at_1"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        rules.drawn(self)

    def run(self, session: Session) -> Outcome:
        """Write, run, count."""
        rows = read_rows(self.data, ("task_id", "test_list"))
        shown = [r for r in rows if int(r["task_id"]) in EXAMPLES][: self.shots]
        if len(shown) < self.shots:
            raise ValueError(f"{self.data} lacks the problems 2, 3 and 4, which are the examples: give shots: 0")
        head = "".join(f"{self._ask(r)}{r['code']}\n[DONE]\n\n" for r in shown)
        asked = [r for r in rows if int(r["task_id"]) not in EXAMPLES][: self.limit]
        if not asked:
            raise ValueError(f"{self.data} has no problem but the examples")
        return Trial.of(self).run(session, [self._problem(head, r) for r in asked])

    def _ask(self, row: Row) -> str:
        check_row(self.data, int(row["task_id"]), row, () if "prompt" in row else ("text",))
        text, tests = row.get("prompt", row.get("text")), "\n".join(row["test_list"])
        return (
            f"You are an expert Python programmer, and here is your task: {text} "
            f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
        )

    def _problem(self, head: str, row: Row) -> Problem:
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
        return Problem(
            str(row["task_id"]), head + self._ask(row), f"{setup}\n", "\n" + "\n".join(row["test_list"]) + "\n"
        )
