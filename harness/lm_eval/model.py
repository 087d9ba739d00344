"""A session as lm-eval sees a model; with `tasks`, the only door to that library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from ..generation import Question, Rule, ask
from ..likelihood import Pair, score_pairs
from ..lm import Session

Spent = dict[str, float]


@dataclass(eq=False)
class Model(TemplateLM):  # type: ignore[misc]  # the library is untyped
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
        """End of text.

        Raises:
            ValueError: the tokenizer has none.
        """
        end = self.session.lm.tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "the model's tokenizer has no end-of-text token, which lm-eval's tasks need: name one in it"
            )
        return int(end)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        first = self.session.lm.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        """For the names of lm-eval's caches, which are not used; it asks for it where prompts become chats."""
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
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        del options
        pairs = [self._pair(*request) for request in requests]
        found = {p.id: s for p, s in zip(_unique(pairs), score_pairs(self.session, _unique(pairs)), strict=True)}
        for (args, _, _), pair in zip(requests, pairs, strict=True):
            self.spent[request_name(args)] = _spent(found[pair.id])
        return [(found[p.id]["logprob_nats"], found[p.id]["greedy"]) for p in pairs]

    def _pair(self, args: tuple[str, str], context: list[int], continuation: list[int]) -> Pair:
        if not continuation:
            raise ValueError(f"a continuation without a token: {args[1]!r}")
        if len(continuation) > self.length:
            raise ValueError(f"a continuation of {len(continuation)} tokens does not fit into length: {self.length}")
        kept = context[-(self.length + 1 - len(continuation)) :]
        self.truncated += len(kept) < len(context)
        return Pair(f"pair-{request_name((kept, continuation))}", tuple(kept), tuple(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: FBT001, FBT002 - lm-eval's signature
        """Every token of a text is scored once, in windows of the model's context."""
        del disable_tqdm
        windows = [[self._pair(("", ""), *w) for w in self._rolling(r.args[0])] for r in requests]
        every = _unique([p for part in windows for p in part])
        found = {p.id: s for p, s in zip(every, score_pairs(self.session, every), strict=True)}
        for request, part in zip(requests, windows, strict=True):
            each = [_spent(found[p.id]) for p in part]
            self.spent[request_name(request.args)] = {k: sum(s[k] for s in each) for k in each[0]} if each else {}
        return [sum(found[p.id]["logprob_nats"] for p in part) for part in windows]

    def _rolling(self, text: str) -> list[tuple[list[int], list[int]]]:
        tokens = self.tok_encode(text)
        windows = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.length, 1)
        return [utils.make_disjoint_window(w) for w in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: FBT001, FBT002 - lm-eval's signature
        """Requests of equal rules together."""
        del disable_tqdm
        rules: dict[str, tuple[Rule, dict[str, str]]] = {}
        names: list[str] = []
        count: dict[str, int] = {}
        for request in requests:
            context, options = request.args
            name = request_name(request.args)
            count[name] = count.get(name, 0) + 1  # repeats are drawn anew
            rule = _rule(options)
            rules.setdefault(json.dumps(options, sort_keys=True), (rule, {}))[1][f"text-{name}-{count[name]}"] = context
            names.append(f"text-{name}-{count[name]}")
        replies: dict[str, dict[str, Any]] = {}
        for rule, contexts in rules.values():
            asked = [self._question(n, c, rule.new) for n, c in contexts.items()]
            replies |= {s["id"]: s for s in ask(self.session, asked, rule, lambda _, r: {"reply": r.text})}
        for request, name in zip(requests, names, strict=True):
            self.spent[request_name(request.args)] = _spent(replies[name])
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
        each = [self.spent[request_name(args)] for args in arguments]
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


def request_name(value: Any) -> str:
    """The same request has the same name in every run."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]
