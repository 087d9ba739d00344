"""HumanEval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...results import rules
from ...results.fields import Data, Within
from ..code import Problem, Trial
from ..lm import Session
from ..rows import read_rows
from ..task import Outcome, Task

FIELDS = ("task_id", "prompt", "test", "entry_point")


@dataclass(frozen=True)
class HumanEval(Task):
    """Functions completed from their head and docstring, and run against hidden tests (arXiv 2107.03374).

    Programs run in a sandbox: no network, no files but Python's, limits of time, memory and processes. Score: pass@1;
    pass@k for every k of `ks`, without bias. Lengths of prompts and completions are apart for passed and failed.

    Arguments: `data` rows of HumanEval; `limit` problems; `draws` completions of each; `ks`; `temperature` and `top_p`
    of drawing (0: greedy); `new` tokens at most; `stops`; `seconds` a program may take; `unsafe`: run programs as you,
    with your files and network, where no sandbox can be had (else the cell fails there).
    """

    data: Annotated[str, Data("harness/data", ("task_id", "prompt", "test", "entry_point"))]
    limit: Annotated[int, Within(1)] | None = None
    draws: Annotated[int, Within(1)] = 1
    ks: tuple[Annotated[int, Within(1)], ...] = (1,)
    temperature: Annotated[float, Within(0)] = 0.0
    top_p: Annotated[float, Within(0, 1, open_low=True)] = 1.0
    new: Annotated[int, Within(1)] = 512
    stops: tuple[str, ...] = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    seconds: Annotated[float, Within(0, open_low=True)] = 5.0
    unsafe: bool = False
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "pass_at_1"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        rules.drawn(self)

    def run(self, session: Session) -> Outcome:
        """Complete, run, count."""
        rows = read_rows(self.data, FIELDS)[: self.limit]
        problems = [
            Problem(r["task_id"], r["prompt"], r["prompt"], f"\n\n{r['test']}\n\ncheck({r['entry_point']})\n")
            for r in rows
        ]
        return Trial.of(self).run(session, problems)
