"""A language model under a method, and the verbs that tasks are made of: score, generate, prefill and step.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.bind import Binding, bind
from ..models.method import Method
from ..models.shard import Shard
from ..results.cell import Cell
from .world import World

Replies = list[list[int]]
TOKENS_AT_ONCE = 8192  # a batch holds so many tokens; no result depends on it


@dataclass(frozen=True)
class LM:
    """A loaded model, without a method: what the cells of a group share."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shard: Shard
    world: World

    @contextmanager
    def under(self, method: Method, cell: Cell, artifacts: Mapping[str, Path]) -> Iterator[Session]:
        """The model with a method in it."""
        with bind(self.model, method, artifacts=artifacts, prefill=cell.prefill, shard=self.shard) as binding:
            yield Session(self, method, cell, binding)


@dataclass
class State:
    """Texts under way.

    Attributes:
        cache: the method's cache.
        mask: [B, S] 1 for tokens, 0 for padding; None where no text is padded.
        length: [B] tokens of each text so far.
        logits: [B, V] of the last row.
    """

    cache: Any
    mask: Tensor | None
    length: Tensor
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Session:
    """A model under a method, for one cell."""

    lm: LM
    method: Method
    cell: Cell
    binding: Binding

    @contextmanager
    def instead(self, method: Method) -> Iterator[None]:
        """Another method for a while (a calibration that watches the keys go by)."""
        before = self.method, self.binding.method
        self.method = self.binding.method = method
        try:
            yield
        finally:
            self.method, self.binding.method = before

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.lm.model.device

    def encode(self, text: str) -> list[int]:
        """Token numbers, without special tokens."""
        return list(self.lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token numbers."""
        return str(self.lm.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def prefill(self, texts: Sequence[Sequence[int]]) -> State:
        """Start texts, padded on the left; the prompt's rows are dense or the method's, as the cell says."""
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(t)) + list(t) for t in texts], device=self.device)
        length = torch.tensor([len(t) for t in texts], device=self.device)
        mask = None
        if min(map(len, texts)) < longest:
            mask = (torch.arange(longest, device=self.device) >= longest - length[:, None]).long()
        state = State(self.binding.cache(), mask, torch.zeros_like(length))
        self.binding.feeding = "prefill"
        self._forward(state, ids, length, last_only=True)
        return state

    def extend(self, state: State, ids_BT: Tensor) -> Tensor:
        """Feed T tokens as rows that the method acts on; returns their logits [B, T, V].

        All at once where the method's own vectorised pass gives what T steps give, else one by one.
        """
        self.binding.feeding = "decode"
        if self.method.vectorised or ids_BT.shape[1] == 1:
            return self._forward(state, ids_BT, self._new(state, ids_BT), last_only=False)
        columns = ids_BT.split(1, 1)
        return torch.cat([self._forward(state, c, self._new(state, c), last_only=False) for c in columns], 1)

    def step(self, state: State, token_B: Tensor) -> Tensor:
        """Feed one token to each text; returns the logits [B, V] of what follows."""
        self.binding.feeding = "decode"
        self._forward(state, token_B[:, None], self._new(state, token_B[:, None]), last_only=True)
        return state.logits

    @staticmethod
    def _new(state: State, ids_BT: Tensor) -> Tensor:
        return torch.full_like(state.length, ids_BT.shape[1])

    def _forward(self, state: State, ids_BT: Tensor, new_B: Tensor, *, last_only: bool) -> Tensor:
        rows = ids_BT.shape[1]
        state.length = state.length + new_B
        positions = (state.length[:, None] - rows + torch.arange(rows, device=self.device)).clamp(min=0)
        if state.mask is not None and state.mask.shape[1] < state.cache.get_seq_length() + rows:
            state.mask = torch.cat([state.mask, torch.ones_like(ids_BT)], 1)
        out = self.lm.model(
            input_ids=ids_BT,
            attention_mask=state.mask,
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
            logits_to_keep=int(last_only),
        )
        state.logits = out.logits[:, -1].float()
        return out.logits

    def score(self, ids_BT: Tensor, prompt: int) -> Tensor:
        """Log-probabilities [B, T - prompt] of the tokens after the prompt, each from rows that the method acted on.

        The first is predicted by the prompt's last token, which is therefore not prefilled but fed as a row.

        Raises:
            ValueError: no prompt.
        """
        if prompt < 1:
            raise ValueError(f"a score needs at least one token before it, got a prompt of {prompt}")
        state, done = self._begin(ids_BT, prompt - 1)
        logits = self.extend(state, ids_BT[:, done:-1])[:, prompt - 1 - done :]
        return torch.log_softmax(logits.float(), -1).gather(2, ids_BT[:, prompt:, None])[..., 0]

    def _begin(self, ids_BT: Tensor, prompt: int) -> tuple[State, int]:
        if prompt > 0:
            return self.prefill(ids_BT[:, :prompt].tolist()), prompt
        length = torch.zeros(ids_BT.shape[0], dtype=torch.long, device=self.device)
        return State(self.binding.cache(), None, length), 0

    def generate(
        self, contexts: Sequence[Sequence[int]], questions: Sequence[Sequence[int]], new: int
    ) -> list[list[int]]:
        """Greedy continuations of context + question, `new` tokens each.

        The context is prefilled; the question is prefilled with it where the cell is query-aware, else fed as rows
        that the method acts on. Its last token always is, so that no answer token comes from a dense row. Texts are
        batched by the length of their question, so that no result depends on who shares a batch.
        """
        if self.cell.query_aware:
            contexts = [[*c, *q[:-1]] for c, q in zip(contexts, questions, strict=True)]
            questions = [q[-1:] for q in questions]
        replies: dict[int, list[int]] = {}
        for batch in _batches(contexts, questions):
            got = self._generate([contexts[i] for i in batch], [questions[i] for i in batch], new)
            replies.update(zip(batch, got, strict=True))
        return [replies[i] for i in range(len(contexts))]

    def _generate(self, contexts: list[Sequence[int]], questions: list[Sequence[int]], new: int) -> Replies:
        state = self.prefill(contexts)
        self.extend(state, torch.tensor(questions, device=self.device))
        tokens = [state.logits.argmax(-1)]
        for _ in range(new - 1):
            tokens.append(self.step(state, tokens[-1]).argmax(-1))
        return torch.stack(tokens, 1).tolist()


def _batches(contexts: Sequence[Sequence[int]], questions: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of texts whose questions are equally long, at most TOKENS_AT_ONCE tokens together."""
    order = sorted(range(len(contexts)), key=lambda i: (len(questions[i]), len(contexts[i])))
    batch: list[int] = []
    for i in order:
        longest = max([len(contexts[i]), *(len(contexts[j]) for j in batch)]) + len(questions[i])
        full = (len(batch) + 1) * longest > TOKENS_AT_ONCE
        if batch and (full or len(questions[batch[0]]) != len(questions[i])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
