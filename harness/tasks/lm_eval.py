"""Tasks of lm-eval under any method: the only door to that library."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import io
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import datasets
import lm_eval
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ...results.fields import Data, Within, near
from ..generation import Question, Rule, ask
from ..layouts import in_hub_columns
from ..likelihood import Pair, score_pairs
from ..lm import Session
from ..rows import read_rows
from ..task import Outcome, Task

Spent = dict[str, float]
FEWSHOT_SEED = 1234  # lm-eval's own default


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
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        model = _Model(session, self.length or session.context_length)
        tasks = self._tasks()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars, one for each task, lie between our lines
            found = evaluate(
                model,
                tasks,
                limit=self.limit,
                bootstrap_iters=0,
                apply_chat_template=self.chat != "none",
                fewshot_as_multiturn=self.chat == "turns",
            )
        assert found is not None, "every rank is rank 0 to lm-eval"
        return self._outcome(found, model)

    def _tasks(self) -> dict[str, Any]:
        name = self.file or self.task
        manager = _manager(name)
        entries = self._leaves(name, manager.task_index)
        if self.data is None:
            try:
                loaded = manager.load(name)
            except Exception as error:  # of many libraries: no network, no such set
                reason = (str(error).strip().splitlines() or [""])[0]
                raise ValueError(
                    f"{name} cannot be had ({type(error).__name__}: {reason}): its data need the network once, "
                    "or give data, a file"
                ) from error
        else:
            built = {leaf: self._local(leaf, path) for leaf, path in entries}
            loaded = {"tasks": built, "groups": {}, "group_map": {}}
        for leaf, made in loaded["tasks"].items():
            self._set_shots(leaf, made)
        return dict(loaded)

    def _leaves(self, name: str, index: Mapping[str, Any]) -> list[tuple[str, Path]]:
        """Names and files of the tasks that a name stands for."""
        path = Path(name)
        if path.is_file():
            return [(str(load_yaml(path, resolve_func=False)["task"]), path)]
        entry, members = index[name], []
        if entry.yaml_path is None:
            members = sorted(entry.tags)
        elif "group" in (entry.cfg or {}):
            members = [m if isinstance(m, str) else m["task"] for m in entry.cfg["task"]]
        if not members:
            return [(name, Path(entry.yaml_path))]
        return [leaf for member in members for leaf in self._leaves(member, index)]

    def _local(self, leaf: str, path: Path) -> ConfigurableTask:
        """A task of lm-eval on a file."""
        config = load_yaml(path, resolve_func=True)
        tests = "test_split" if config.get("test_split") else "validation_split"
        here = self._rows(leaf, self.data, config)
        splits = {"here": here}
        config |= {"training_split": None, "validation_split": None, "test_split": None, "fewshot_split": None}
        config |= {tests: "here", "dataset_path": None, "dataset_kwargs": None}
        if self.shots_data is not None:  # from the same file, lm-eval leaves a document's own example out
            config["fewshot_split"] = "here" if self.shots_data == self.data else "shots"
            splits["shots"] = self._rows(leaf, self.shots_data, config)
        elif self.shots or (self.shots is None and config.get("num_fewshot")):
            raise ValueError(f"{leaf} has few-shot examples: give shots_data, a file to take them from, or shots: 0")
        for key in ("tag", "group"):
            config.pop(key, None)
        config["custom_dataset"] = lambda **_: splits
        return ConfigurableTask(config=config)

    @staticmethod
    def _rows(leaf: str, name: str | None, config: Mapping[str, Any]) -> datasets.Dataset:
        assert name is not None
        rows = in_hub_columns(leaf, name, read_rows(name), str(config.get("dataset_name") or ""))
        return datasets.Dataset.from_list([dict(row) for row in rows])

    def _set_shots(self, leaf: str, made: Any) -> None:
        if self.shots is not None:
            if made.get_config("num_fewshot") == 0 and self.shots:
                raise ValueError(f"{leaf} has its examples in its prompt: leave shots out, or give 0")
            made.set_config(key="num_fewshot", value=self.shots)
        made.set_fewshot_seed(seed=FEWSHOT_SEED)

    def _outcome(self, found: Mapping[str, Any], model: _Model) -> Outcome:
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


def _samples(leaf: str, docs: Sequence[Mapping[str, Any]], metric: str, model: _Model) -> list[dict[str, Any]]:
    name, _, rule = metric.partition(",")
    mine = [d for d in docs if d["filter"] == rule]
    return [{"id": f"{leaf}/{d['doc_id']}", **_score(d[name]), **model.spent_on(d["arguments"])} for d in mine]


def _score(value: Any) -> dict[str, Any]:
    """A number is a score; what lm-eval aggregates otherwise (log-likelihood and words, say) is kept as it is."""
    return {"score": float(value)} if isinstance(value, (bool, int, float)) else {"value": value}


@functools.cache
def _manager(name: str) -> TaskManager:
    """lm-eval's index of the families in which a name stands: reading all of its 14,000 tasks takes half a minute.

    Raises:
        ValueError: it stands nowhere.
    """
    if Path(name).is_file():
        return TaskManager(include_defaults=False)
    stands = re.compile(rf"^\W*(?:task|group|tag)?\W*{re.escape(name)}\W*$", re.MULTILINE)
    root, families, known = Path(lm_eval.tasks.__file__).parent, set(), set()
    for path in root.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        known.update(re.findall(r"^\W*(?:task|group)\W+([\w.:-]+)\W*$", text, re.MULTILINE))
        if stands.search(text):
            families.add(root / path.relative_to(root).parts[0])
    made = TaskManager(include_defaults=False, include_path=[str(f) for f in sorted(families)])
    if not families or name not in made.task_index:
        raise ValueError(f"lm-eval knows no task {name!r}: {_few(name, known)}")
    return made


def _few(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {len(known)}, `lm-eval ls tasks` has them"


@dataclass(eq=False)
class _Model(TemplateLM):
    """A session as lm-eval sees a model. Every rank asks the same; each is rank 0 of 1 to lm-eval."""

    session: Session
    length: int
    truncated: int = 0
    spent: dict[str, Spent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.tokenizer = self.session.lm.tokenizer

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return int(self.session.lm.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        first = self.session.lm.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """For the names of lm-eval's caches, which are not used."""
        return "lacuna"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: FBT001
        """As lm-eval's own model encodes: special tokens as the tokenizer adds them, once."""
        lm = self.session.lm
        begun = string.startswith(str(lm.tokenizer.decode(self.prefix_token_id)))
        own = add_special_tokens or (add_special_tokens is None and not begun)
        return lm.encode(string, "own" if own else "none")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002
        """The model's own format."""
        return str(
            self.session.lm.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._pair(*request) for request in requests]
        found = {p.id: s for p, s in zip(_unique(pairs), score_pairs(self.session, _unique(pairs)), strict=True)}
        for (args, _, _), pair in zip(requests, pairs, strict=True):
            self.spent[_name(args)] = _spent(found[pair.id])
        return [(found[p.id]["logprob_nats"], found[p.id]["greedy"]) for p in pairs]

    def _pair(self, args: tuple[str, str], context: list[int], continuation: list[int]) -> Pair:
        if not continuation:
            raise ValueError(f"a continuation without a token: {args[1]!r}")
        if len(continuation) > self.length:
            raise ValueError(f"a continuation of {len(continuation)} tokens does not fit into length: {self.length}")
        kept = context[-(self.length + 1 - len(continuation)) :]
        self.truncated += len(kept) < len(context)
        return Pair(f"pair-{_name((kept, continuation))}", tuple(kept), tuple(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: FBT001, FBT002 - lm-eval's signature
        """Every token of a text is scored once, in windows of the model's context."""
        del disable_tqdm
        windows = [[self._pair(("", ""), *w) for w in self._rolling(r.args[0])] for r in requests]
        every = _unique([p for part in windows for p in part])
        found = {p.id: s for p, s in zip(every, score_pairs(self.session, every), strict=True)}
        for request, part in zip(requests, windows, strict=True):
            spent = [_spent(found[p.id]) for p in part]
            self.spent[_name(request.args)] = {k: sum(s[k] for s in spent) for k in spent[0]} if spent else {}
        return [sum(found[p.id]["logprob_nats"] for p in part) for part in windows]

    def _rolling(self, text: str) -> list[tuple[list[int], list[int]]]:
        tokens = self.tok_encode(text)
        windows = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.length, 1)
        return [utils.make_disjoint_window(w) for w in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001, FBT002 - lm-eval's signature
        """Requests of equal rules together."""
        del disable_tqdm
        rules: dict[str, tuple[Rule, dict[str, str]]] = {}
        names, count = [], {}
        for request in requests:
            context, options = request.args
            name = _name(request.args)
            count[name] = count.get(name, 0) + 1  # repeats are drawn anew
            rule = _rule(options)
            rules.setdefault(json.dumps(options, sort_keys=True), (rule, {}))[1][f"text-{name}-{count[name]}"] = context
            names.append(f"text-{name}-{count[name]}")
        replies: dict[str, dict[str, Any]] = {}
        for rule, contexts in rules.values():
            asked = [self._question(n, c, rule.new) for n, c in contexts.items()]
            replies |= {s["id"]: s for s in ask(self.session, asked, rule, lambda _, r: {"reply": r.text})}
        for request, name in zip(requests, names, strict=True):
            self.spent[_name(request.args)] = _spent(replies[name])
        return [str(replies[name]["reply"]) for name in names]

    def _question(self, name: str, text: str, new: int) -> Question:
        tokens, room = self.tok_encode(text), self.length - new
        if room < 1:
            raise ValueError(f"answers of {new} tokens leave no room for a prompt in length: {self.length}")
        self.truncated += len(tokens) > room
        kept = tokens[-room:]
        return Question(name, kept[:-1], (kept[-1:],))

    def spent_on(self, arguments: Sequence[Any]) -> Spent:
        """Tokens of all requests of a document; of prompts the longest."""
        each = [self.spent[_name(args)] for args in arguments]
        total = {k: sum(e.get(k, 0) for e in each) for k in each[0]}
        return {**total, "prompt_tokens": max(e.get("prompt_tokens", 0) for e in each)}

    def output(self) -> dict[str, float]:
        """Mean length of answers and time to them, where there were any."""
        answers = [s for s in self.spent.values() if "answer_s" in s]
        words = ("completion_tokens", "answer_s") if answers else ()
        return {f"{w}_mean": sum(a[w] for a in answers) / len(answers) for w in words}


def _rule(options: Mapping[str, Any]) -> Rule:
    given = normalize_gen_kwargs(dict(options))
    known = {"until", "max_gen_toks", "do_sample", "temperature", "top_p"}
    more = sorted(set(given) - known)
    if more:
        raise ValueError(
            f"the task generates with {more[0]}, which is not supported; there is: {', '.join(sorted(known))}"
        )
    heat = float(given.get("temperature") or 0.0)
    return Rule(
        int(given["max_gen_toks"]), tuple(given["until"]), temperature=heat, top_p=float(given.get("top_p", 1.0))
    )


def _spent(sample: Mapping[str, Any]) -> Spent:
    return {k: sample[k] for k in ("prompt_tokens", "completion_tokens", "answer_s") if k in sample}


def _unique(pairs: Sequence[Pair]) -> list[Pair]:
    return list({p.id: p for p in pairs}.values())


def _name(value: Any) -> str:
    """The same request has the same name in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]
