"""Perplexity of held-out text under the attention that is trained: windows of equal length, every position counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...models.load import attending
from .batches import Batches, ahead
from .corpus import documents
from .landmarks import Batch, Landmarks
from .loop import Loop
from .schedule import Part

AT_ONCE = 16384  # tokens of a forward pass; no result depends on it


@dataclass(frozen=True)
class Heldout:
    """Windows that do not overlap, from the documents in turn.

    Attributes:
        windows: [W, L + 1] tokens.
        landmarks: how they are inserted; None: not at all.
    """

    windows: np.ndarray
    landmarks: Landmarks | None

    @classmethod
    def of(cls, corpus: str, batches: Batches, length: int, most: int, landmarks: Landmarks | None) -> Heldout:
        """Cut a corpus.

        Raises:
            ValueError: no document is as long as a window, or landmarks do not divide it.
        """
        if landmarks is not None:
            landmarks.check(length)
        encode = batches.shards.tokenizer.encode
        ids = [encode(text, add_special_tokens=False).ids for text in documents([corpus])]
        cut = [[d[i : i + length + 1] for i in range(0, len(d) - length, length)] for d in ids]
        deep = max(map(len, cut), default=0)
        turns = [c[i] for i in range(deep) for c in cut if i < len(c)][:most]
        if not turns:
            raise ValueError(f"no document of {corpus!r} has {length + 1} tokens: held-out windows need one")
        return cls(np.array(turns, np.int64), landmarks)

    @torch.no_grad()
    def perplexity(self, loop: Loop) -> float:
        """The exponential of the mean loss a token; every rank reads every window: a pass may be a collective."""
        rows = max(1, AT_ONCE // self.windows.shape[1])
        starts = range(0, len(self.windows), rows)
        parts = [Part(0, start, rows, self.windows.shape[1] - 1, 0.0, last=True) for start in starts]
        sums = torch.zeros(2, dtype=torch.float64)
        loop.model.eval()
        with attending(loop.model, loop.kind.attend):
            for fed in ahead(self._make, parts, loop.device):
                for found in loop.kind.sums(loop.losses, fed):
                    sums += found[1:].double().cpu()
        return math.exp(float(sums[0] / sums[1]))

    def _make(self, part: Part) -> Batch:
        rows = self.windows[part.number : part.number + part.rows]
        batch = Batch(rows[:, :-1], rows[:, 1:], np.ones(rows[:, 1:].shape, np.float32))
        return batch if self.landmarks is None else self.landmarks.insert(batch, np.random.default_rng(0))
