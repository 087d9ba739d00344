"""Tasks of lm-eval under any method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ...results.fields import Data, Within, near
from ..chat import check_chat
from ..lm import Session
from ..lm_eval.model import Model
from ..lm_eval.tasks import Wanted, build, judge
from ..task import Outcome, Task


@dataclass(frozen=True)
class LmEval(Task):
    """A task of lm-eval, by name or by a YAML file, with prompts, shots and metrics as lm-eval has them.

    Continuations and answers are rows that the method acts on; of a prompt only the last token is. What is longer than
    `length` loses its beginning, and is counted in `truncated`. `score` is `metric` as lm-eval aggregates it; every
    other metric of the task is recorded under its own name. With dense attention the results are those of lm-eval's own
    Hugging Face model.

    Arguments: `task` a task, group or tag that lm-eval knows, or `file` a YAML of its form; `data` its test set, in
    place of the Hub's; `shots_data` what few-shot examples are taken from; `shots` how many (none: the task's own);
    `metric` such as acc_norm or "exact_match,strict-match" (default: the task's first); `limit` documents of each task;
    `length` tokens (none: the model's context); `chat` whether prompts become the model's chat format, as one message
    or with shots as turns.
    """

    task: str = ""
    file: Annotated[str, Data("harness/data")] | None = None
    data: Annotated[str, Data("harness/data")] | None = None
    shots_data: Annotated[str, Data("harness/data")] | None = None
    shots: Annotated[int, Within(0)] | None = None
    metric: str = ""
    limit: Annotated[int, Within(1)] | None = None
    length: Annotated[int, Within(2)] | None = None
    chat: Literal["none", "message", "turns"] = "none"
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "score"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def __post_init__(self) -> None:
        if bool(self.task) == bool(self.file):
            raise ValueError("lm_eval: give task, a name that lm-eval knows, or file, a YAML: one of both")
        if self.shots_data is not None and self.data is None:
            raise ValueError("lm_eval: shots_data without data would mix a file with the Hub: give both or none")

    def run(self, session: Session) -> Outcome:
        """Let lm-eval build requests and judge answers; samples hold each document's score."""
        if self.chat != "none":
            check_chat(session.lm.tokenizer)
        model = Model(session, self.length or session.context_length)
        tasks = build(Wanted(self.file or self.task, self.data, self.shots_data, self.shots, self.limit))
        return self._outcome(judge(model, tasks, self.limit, self.chat), model)

    def _outcome(self, found: Mapping[str, Any], model: Model) -> Outcome:
        results = {name: _numbers(values) for name, values in found["results"].items()}
        leaves = found["samples"]
        known = results[next(iter(leaves))]
        metric = next((m for m in known if self.metric in ("", m, m.split(",")[0])), None)
        if metric is None:
            raise ValueError(f"{self.task or self.file} has no metric {self.metric!r}: {near(self.metric, known)}")
        samples = [s for leaf, docs in leaves.items() for s in _samples(leaf, docs, metric, model)]
        top = [name for name in results if name not in leaves and metric in results[name]]
        if top:
            score = results[top[0]][metric]
        elif len(leaves) == 1:
            score = known[metric]
        else:
            score = sum(s["score"] for s in samples) / len(samples)
        told = {
            f"{n}_{_word(m)}" if len(results) > 1 else _word(m): v for n, r in results.items() for m, v in r.items()
        }
        spent = {"documents": len(samples), "truncated": model.truncated}
        return Outcome({"score": score, **told, **spent, **model.output()}, samples)


def _word(metric: str) -> str:
    """acc,none -> acc; exact_match,strict-match -> exact_match_strict_match."""
    name, _, rule = metric.partition(",")
    return name if rule in ("", "none") else f"{name}_{rule}".replace("-", "_")


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if "," in k and "_stderr" not in k and isinstance(v, (int, float))}


def _samples(leaf: str, docs: Sequence[Mapping[str, Any]], metric: str, model: Model) -> list[dict[str, Any]]:
    name, _, rule = metric.partition(",")
    mine = [d for d in docs if d["filter"] == rule]
    return [{"id": f"{leaf}/{d['doc_id']}", **_score(d[name]), **model.spent_on(d["arguments"])} for d in mine]


def _score(value: Any) -> dict[str, Any]:
    """A number is a score; what lm-eval aggregates otherwise (log-likelihood and words, say) is kept as it is."""
    return {"score": float(value)} if isinstance(value, (bool, int, float)) else {"value": value}
