"""A language model under a method, and the verbs that tasks are made of: score, generate, prefill and step.

Shapes: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .journal import Batches, Journal, T
from .world import World

TOKENS_AT_ONCE = 8192  # a batch holds so many tokens; no result depends on it
ROWS_AT_ONCE = 4096  # rows of a text fed together: what is made for each pair of a row and a token stays small
TEXTS_KNOWN = 1 << 17  # whose tokens are remembered


@dataclass(frozen=True)
class LM:
    """A loaded model, without a method: what the cells of a group share, the tokens of texts among it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shard: Shard
    world: World

    @contextmanager
    def under(
        self,
        method: Method,
        cell: Cell,
        artifacts: Mapping[str, Path],
        journal: Journal | None = None,
        work: Path | None = None,
    ) -> Iterator[Session]:
        """The model with a method in it; `work` is a folder where a training leaves what its next try goes on from."""
        with bind(self.model, method, artifacts=artifacts, prefill=cell.prefill, shard=self.shard) as binding:
            yield Session(self, method, cell, binding, journal or Journal(), work=work)

    def encode(self, text: str, special: str = "none") -> list[int]:
        """Token numbers; a text is encoded once. `special: own` adds what the tokenizer adds by itself."""
        return list(self._encode(text, special == "own"))

    @functools.cached_property
    def _encode(self) -> Callable[[str, bool], tuple[int, ...]]:
        @functools.lru_cache(TEXTS_KNOWN)
        def encode(text: str, special: bool) -> tuple[int, ...]:  # noqa: FBT001 - the tokenizer's own switch
            known = tuple(self.tokenizer(text, add_special_tokens=special)["input_ids"])
            # that of a shape with random weights knows no token: it is timed on bytes
            return known or tuple(text.encode("utf-8"))

        return encode


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

    def pick(self, rows: Tensor) -> State:
        """The texts of these numbers, some left out or taken more than once; the old state is spent."""
        self.cache.reorder_cache(rows)
        return self._picked(self.cache, rows)

    def fork(self, rows: Tensor) -> State:
        """The same as a copy: the old state stays as it is."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.memory = None if layer.memory is None else layer.memory.fork(rows)
        return self._picked(cache, rows)

    def _picked(self, cache: Any, rows: Tensor) -> State:
        mask = None if self.mask is None else self.mask[rows]
        return State(cache, mask, self.length[rows], self.logits[rows] if self.logits.numel() else self.logits)


@dataclass
class Session:
    """A model under a method, for one cell."""

    lm: LM
    method: Method
    cell: Cell
    binding: Binding
    journal: Journal = field(default_factory=Journal)
    current: State | None = None
    work: Path | None = None

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
        return self.lm.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token numbers."""
        return str(self.lm.tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text."""
        known = self.lm.model.generation_config
        given = None if known is None else known.eos_token_id
        listed = given if isinstance(given, list) else [given, self.lm.tokenizer.eos_token_id]
        return frozenset(t for t in listed if t is not None)

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for."""
        return int(self.lm.model.config.get_text_config().max_position_embeddings)

    def mind(self, tokens: int) -> None:
        """Tell when texts are longer than the model was made for: nothing is cut, and scores may be of that alone."""
        if tokens > self.context_length:
            self.journal.tell(f"  texts of {tokens} tokens, the model was made for {self.context_length}: none is cut")

    def each(
        self, items: Sequence[T], batches: Batches[T], work: Callable[[list[T]], Sequence[Mapping[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Measure samples batch by batch; see `Journal.each`."""

        def sums() -> Tensor:
            return self.binding.ledger.sums()  # of whichever ledger it has by then

        return self.journal.each(items, batches, work, sums)

    def sums(self) -> Tensor:
        """The ledger's sums for this cell, those of an earlier, killed run of it among them."""
        return self.journal.whole(self.binding.ledger.sums())

    def blank(self, count: int) -> State:
        """So many texts without a token."""
        return State(self.binding.cache(), None, torch.zeros(count, dtype=torch.long, device=self.device))

    def start(self, texts: Sequence[Sequence[int]]) -> State:
        """Prefill texts, equal ones once; all of them are empty, or none."""
        unique = list(dict.fromkeys(map(tuple, texts)))
        if not unique[0]:
            return self.blank(len(texts))
        state = self.prefill(unique)
        if len(unique) == len(texts):
            return state
        place = {text: i for i, text in enumerate(unique)}
        return state.pick(torch.tensor([place[tuple(t)] for t in texts], device=self.device))

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

        Many at once where the method's own vectorised pass gives what T steps give, else one by one.
        """
        self.binding.feeding = "decode"
        parts = ids_BT.split(ROWS_AT_ONCE if self.method.vectorised else 1, 1)
        return torch.cat([self._forward(state, part, self._new(state, part), last_only=False) for part in parts], 1)

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
        if state is not self.current:  # the binding still knows where the padding of another state ends
            self.binding.first, self.current = None, state
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
        parts = zip(*(ids.split(ROWS_AT_ONCE, 1) for ids in (ids_BT[:, done:-1], ids_BT[:, done + 1 :])), strict=True)
        logs = [torch.log_softmax(self.extend(state, row).float(), -1).gather(2, to[..., None]) for row, to in parts]
        return torch.cat(logs, 1)[:, prompt - 1 - done :, 0]

    def _begin(self, ids_BT: Tensor, prompt: int) -> tuple[State, int]:
        if prompt > 0:
            return self.prefill(ids_BT[:, :prompt].tolist()), prompt
        return self.blank(ids_BT.shape[0]), 0
