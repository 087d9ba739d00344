"""Programs that a model writes: drawn, run in the sandbox, counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .generation import Question, Reply, Rule, ask, output
from .lm import Session
from .sandbox.run import Ended, Limits, missing, run_inside, run_unsafe
from .task import Outcome


class Problem(NamedTuple):
    """A prompt, and what makes a program of its completion: text before and after it."""

    id: str
    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Trial:
    """How problems are tried.

    Attributes:
        draws: completions of each problem.
        ks: for pass@k.
        rule: how a completion is written.
        limits: what its program may use.
        unsafe: run it without a sandbox where none can be had.
    """

    draws: int
    ks: tuple[int, ...]
    rule: Rule
    limits: Limits
    unsafe: bool

    @classmethod
    def of(cls, args: Any) -> Trial:
        """From a task's `draws`, `ks`, `temperature`, `top_p`, `new`, `stops`, `seconds` and `unsafe`."""
        rule = Rule(args.new, args.stops, temperature=args.temperature, top_p=args.top_p)
        return cls(args.draws, (1, *args.ks), rule, Limits(args.seconds), args.unsafe)

    def run(self, session: Session, problems: Sequence[Problem]) -> Outcome:
        """Write, run, count; one sample a completion."""
        rank = session.lm.world.ranks.rank
        why = session.lm.world.gather(missing() if rank == 0 else "")[0]
        if why and not self.unsafe:
            raise ValueError(f"{why}; `unsafe: true` runs it as you, with your files and network")
        tokens = [session.encode(p.prompt) for p in problems]
        questions = [
            Question(f"{p.id}#{draw}", t[:-1], (t[-1:],), p)
            for p, t in zip(problems, tokens, strict=True)
            for draw in range(self.draws)
        ]

        def judge(question: Question, reply: Reply) -> Mapping[str, Any]:
            program = f"{question.facts.before}{reply.text}{question.facts.after}"
            ended = session.lm.world.gather(self._execute(program, why) if rank == 0 else None)[0]
            told = {"score": int(ended.passed), "reason": ended.reason, "reply": reply.text}
            return {"problem": question.facts.id, **told}

        samples = ask(session, questions, self.rule, judge)
        return Outcome({**self._passed(samples), **_lengths(samples), **output(samples)}, samples)

    def _execute(self, program: str, why: str) -> Ended:
        return run_unsafe(program, self.limits) if why else run_inside(program, self.limits)

    def _passed(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        right: dict[str, int] = {}
        for s in samples:
            right[s["problem"]] = right.get(s["problem"], 0) + s["score"]
        each = {k: [pass_at(k, self.draws, c) for c in right.values()] for k in self.ks}
        return {"problems": len(right), **{f"pass_at_{k}": sum(v) / len(v) for k, v in each.items()}}


def pass_at(k: int, draws: int, right: int) -> float:
    """Unbiased estimate that one of k is right, of so many draws (Chen et al., arXiv 2107.03374, equation 1)."""
    assert k <= draws
    return 1 - math.comb(draws - right, k) / math.comb(draws, k)


def _lengths(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean lengths, apart for what passed and what failed."""
    found = {}
    for name, score in (("passed", 1), ("failed", 0)):
        mine = [s for s in samples if s["score"] == score]
        for word in ("prompt_tokens", "completion_tokens"):
            if mine:
                found[f"{word}_mean_{name}"] = sum(s[word] for s in mine) / len(mine)
    return found
