"""How likely a continuation is after a context, for many at once; equal contexts are prefilled once.

Shapes: B texts, L tokens of a continuation, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from .lm import TOKENS_AT_ONCE, Session, State

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A context of at least one token, and what is scored after it."""

    id: str
    context: Tokens
    continuation: Tokens


def score_pairs(session: Session, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """For each pair the continuation's log-probability in nats and whether it is the greedy one; a sample each.

    As in generation: the context but its last token is prefilled, that token and the continuation are rows that the
    method acts on. Rows are never padded on the right, so the ledger has the scored rows alone.

    Raises:
        ValueError: a context without tokens.
    """
    bare = next((p for p in pairs if not p.context), None)
    if bare is not None:
        raise ValueError(f"sample {bare.id} has no token before what is scored: begin it with a special token")

    def work(batch: list[Pair]) -> list[dict[str, Any]]:
        scores = _score(session, batch)
        spent = [{"prompt_tokens": len(p.context), "completion_tokens": len(p.continuation)} for p in batch]
        return [
            {"logprob_nats": logprob, "greedy": greedy, **s} for (logprob, greedy), s in zip(scores, spent, strict=True)
        ]

    return session.each(pairs, _batches, work)


def _batches(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """All pairs of a context together, longest contexts first, at most TOKENS_AT_ONCE tokens where that can be."""
    order = sorted(pairs, key=lambda p: (len(p.context), p.context), reverse=True)
    batch: list[Pair] = []
    for context, group in groupby(order, key=lambda p: p.context):
        mine = list(group)
        tokens = max(len(p.context) + len(p.continuation) for p in (*batch, *mine)) * (len(batch) + len(mine))
        if batch and (tokens > TOKENS_AT_ONCE or len(context) == 1 != len(batch[0].context)):
            yield batch
            batch = []
        batch.extend(mine)
    if batch:
        yield batch


def _score(session: Session, batch: Sequence[Pair]) -> list[tuple[float, bool]]:
    contexts = list(dict.fromkeys(p.context for p in batch))
    state = session.prefill([c[:-1] for c in contexts]) if len(contexts[0]) > 1 else session.blank(len(contexts))
    number = {context: i for i, context in enumerate(contexts)}
    found: dict[str, tuple[float, bool]] = {}
    lengths = sorted({len(p.continuation) for p in batch})
    for length in lengths:
        group = [p for p in batch if len(p.continuation) == length]
        rows = torch.tensor([number[p.context] for p in group], device=session.device)
        scores = _extend(session, state.fork(rows) if length != lengths[-1] else state.pick(rows), group)
        found.update(zip((p.id for p in group), scores, strict=True))
    return [found[p.id] for p in batch]


def _extend(session: Session, state: State, group: Sequence[Pair]) -> list[tuple[float, bool]]:
    target_BL = torch.tensor([p.continuation for p in group], device=session.device)
    last_B1 = torch.tensor([[p.context[-1]] for p in group], device=session.device)
    logits = session.extend(state, torch.cat([last_B1, target_BL[:, :-1]], 1)).float()
    logprobs = torch.log_softmax(logits, -1).gather(2, target_BL[..., None])[..., 0].double().sum(1)
    greedy = (logits.argmax(-1) == target_BL).all(1)
    return list(zip(logprobs.tolist(), greedy.tolist(), strict=True))
