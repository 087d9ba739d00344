"""Answers: questions about contexts, batched by length; stops, sampling, several turns, and what each answer took.

Shapes: B texts, V vocabulary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .lm import TOKENS_AT_ONCE, Session, State
from .task import Outcome

Tokens = Sequence[int]
Judge = Callable[["Question", "Reply"], Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """What is asked about a context, turn after turn, in tokens.

    Attributes:
        id: names the sample; with the cell's seed it also seeds sampling.
        context: prefilled.
        turns: the questions; each is answered before the next one is fed.
        facts: what the judge needs to know.
    """

    id: str
    context: Tokens
    turns: tuple[Tokens, ...]
    facts: Any = None

    @property
    def length(self) -> int:
        """Tokens of the prompt of the first turn."""
        return len(self.context) + len(self.turns[0])

    @property
    def whole(self) -> int:
        """Tokens of context and all turns."""
        return len(self.context) + sum(map(len, self.turns))


@dataclass(frozen=True)
class Rule:
    """How an answer is written, and when it ends.

    Attributes:
        new: at most so many tokens.
        stops: texts that end it and are cut off.
        to_the_end: whether an end-of-sequence token ends it too.
        temperature: 0 is greedy; else tokens are drawn, each sample with dice of its own.
        top_p: draw from the likeliest tokens that hold this share of the probability.
    """

    new: int
    stops: tuple[str, ...] = ()
    to_the_end: bool = True
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Reply:
    """What was answered in each turn.

    Attributes:
        texts: of each turn, up to the stop.
        tokens: of each turn, all that were generated (a stop's and the end's among them).
        answer_s: from the batch's start to this answer's last token.
    """

    texts: tuple[str, ...]
    tokens: tuple[list[int], ...]
    answer_s: float

    @property
    def text(self) -> str:
        """The last turn's."""
        return self.texts[-1]


def ask(session: Session, questions: Sequence[Question], rule: Rule, judge: Judge) -> list[dict[str, Any]]:
    """Answer every question and judge the answers; one sample each, in the given order.

    The context is prefilled; the question is prefilled with it where the cell is query-aware, else fed as rows that the
    method acts on. Its last token always is, so that no answer token comes from a dense row. Texts are batched by the
    length of what is fed, and a text that has ended leaves its batch, so that neither results nor the ledger depend on
    who shares a batch. A sample has `prompt_tokens`, `completion_tokens`, `answer_s`, and what the judge says.
    """

    def work(batch: list[Question]) -> list[dict[str, Any]]:
        replies = _answer(session, batch, rule)
        return [_sample(q, r, judge) for q, r in zip(batch, replies, strict=True)]

    session.mind(max(q.whole + rule.new * len(q.turns) for q in questions))
    ready = [_split(q, session.cell.query_aware) for q in questions]
    return session.each(ready, _batches, work)


def output(samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What answering took, on average: the length of answers and the time to them."""
    count = len(samples)
    return {
        "completion_tokens_mean": sum(s["completion_tokens"] for s in samples) / count,
        "answer_s_mean": sum(s["answer_s"] for s in samples) / count,
    }


def scored(samples: Sequence[Mapping[str, Any]], called: str = "samples") -> Outcome:
    """Mean score as accuracy, how many samples there are, and what answering took."""
    accuracy = sum(s["score"] for s in samples) / len(samples)
    return Outcome({"accuracy": accuracy, called: len(samples), **output(samples)}, samples)


def _sample(question: Question, reply: Reply, judge: Judge) -> dict[str, Any]:
    spent = {
        "prompt_tokens": question.length,
        "completion_tokens": sum(map(len, reply.tokens)),
        "answer_s": round(reply.answer_s, 6),
    }
    return {**judge(question, reply), **spent}


def _split(question: Question, query_aware: bool) -> Question:  # noqa: FBT001 - a field of the cell
    """What is prefilled and what is fed: at least one token of each."""
    context, first = list(question.context), list(question.turns[0])
    if query_aware:
        context, first = [*context, *first[:-1]], first[-1:]
    if not first:
        context, first = context[:-1], context[-1:]
    if not context:
        context, first = first[:-1], first[-1:]
    return Question(question.id, context, (first, *question.turns[1:]), question.facts)


def _batches(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Texts whose first questions are equally long, at most TOKENS_AT_ONCE tokens together; same contexts stay close.

    Longest first: what will not fit into memory fails at once, and the time left is never told too short. A question
    of several turns is alone: after the first answers the texts are no longer equally long.
    """
    order = sorted(questions, key=lambda q: (len(q.turns[0]), len(q.context), list(q.context[-64:])), reverse=True)
    batch: list[Question] = []
    for one in order:
        full = (len(batch) + 1) * batch[0].length > TOKENS_AT_ONCE if batch else False
        other = bool(batch) and (len(batch[0].turns[0]) != len(one.turns[0]) or len(batch[0].turns) > 1)
        if batch and (full or other or len(one.turns) > 1 or (not one.context) != (not batch[0].context)):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _answer(session: Session, batch: list[Question], rule: Rule) -> list[Reply]:
    start = time.perf_counter()
    state = session.start([q.context for q in batch])
    session.extend(state, torch.tensor([list(q.turns[0]) for q in batch], device=session.device))
    replies = _write(session, state, [f"{q.id}" for q in batch], rule, start)
    for turn, question in enumerate(batch[0].turns[1:], 1):  # such a batch has one text
        fed = [*replies[0].tokens[-1][-1:], *question]
        session.extend(state, torch.tensor([fed], device=session.device))
        (more,) = _write(session, state, [f"{batch[0].id}-{turn}"], rule, start)
        texts, tokens = (*replies[0].texts, *more.texts), (*replies[0].tokens, *more.tokens)
        replies = [Reply(texts, tokens, more.answer_s)]
    return replies


def _write(session: Session, state: State, names: list[str], rule: Rule, start: float) -> list[Reply]:
    """Write until every text has ended; those that have leave the state (a text alone stays)."""
    ends = session.ends if rule.to_the_end else frozenset()
    dice = [random.Random(f"{session.cell.seed}-{name}") for name in names]  # noqa: S311 - no secret
    tokens: list[list[int]] = [[] for _ in names]
    seconds = [0.0] * len(names)
    alive = list(range(len(names)))
    for step in range(rule.new):
        chosen = choose(state.logits, rule, [dice[i] for i in alive])
        for i, token in zip(alive, chosen.tolist(), strict=True):
            tokens[i].append(token)
        going = [n for n, i in enumerate(alive) if not _ended(session, tokens[i], rule, ends)]
        for n in set(range(len(alive))) - set(going):
            seconds[alive[n]] = time.perf_counter() - start
        if not going or step == rule.new - 1:
            break
        if len(going) < len(alive):
            state = state.pick(torch.tensor(going, device=session.device))
            chosen, alive = chosen[going], [alive[n] for n in going]
        session.step(state, chosen)
    late = time.perf_counter() - start
    return [Reply((_text(session, t, rule, ends),), (t,), seconds[i] or late) for i, t in enumerate(tokens)]


def choose(logits_BV: Tensor, rule: Rule, dice: Sequence[random.Random]) -> Tensor:
    """The next token of each text, [B]: the likeliest, or one drawn by that text's own dice."""
    if rule.temperature == 0:
        return logits_BV.argmax(-1)
    chances = (logits_BV.double() / rule.temperature).softmax(-1)
    ordered, index = chances.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before >= rule.top_p, 0.0)
    sums = kept.cumsum(-1)
    thrown = torch.tensor([d.random() for d in dice], dtype=torch.float64, device=sums.device)
    place = torch.searchsorted(sums, (thrown * sums[:, -1])[:, None], right=True).clamp(max=sums.shape[1] - 1)
    return index.gather(1, place)[:, 0]


def _ended(session: Session, tokens: list[int], rule: Rule, ends: frozenset[int]) -> bool:
    if tokens[-1] in ends:
        return True
    if not rule.stops:
        return False
    tail = session.decode(tokens[-max(map(len, rule.stops)) - 8 :])  # a token has a character at least, or is a byte
    return any(stop in tail for stop in rule.stops)


def _text(session: Session, tokens: list[int], rule: Rule, ends: frozenset[int]) -> str:
    text = session.decode(tokens[:-1] if tokens[-1:] and tokens[-1] in ends else tokens)
    found = [text.index(stop) for stop in rule.stops if stop in text]
    return text[: min(found)] if found else text
