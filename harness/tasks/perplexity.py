"""Perplexity of held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch

from ...results.fields import Data, Within
from ..lm import TOKENS_AT_ONCE, Session
from ..task import Outcome, Task, read_corpus


@dataclass(frozen=True)
class Perplexity(Task):
    """exp of the mean negative log-likelihood a token, over separate windows of held-out text.

    Every token but the first of a window is scored from a row that the method acted on, as it would act in generation:
    that is why a method for decoding shows its loss here. Windows are taken in turn from the corpus's documents.

    Arguments: `corpus` a name in harness/data or a path; `window` tokens; `windows` how many at most.
    """

    corpus: Annotated[str, Data("harness/data")] = "prose"
    window: Annotated[int, Within(2)] = 1024
    windows: Annotated[int, Within(1)] = 8
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def run(self, session: Session) -> Outcome:
        """Score every window; samples hold each window's sum."""
        rows = self._windows(session)
        batch = max(1, TOKENS_AT_ONCE // self.window)
        scores = [session.score(part, prompt=1).double().sum(1) for part in rows.split(batch)]
        losses = (-torch.cat(scores)).tolist()
        tokens = self.window - 1
        mean = sum(losses) / (tokens * len(losses))
        samples = [{"window": i, "nll_nats": loss, "tokens": tokens} for i, loss in enumerate(losses)]
        metrics = {"perplexity": math.exp(mean), "nll_nats_per_token": mean, "tokens": tokens * len(losses)}
        return Outcome(metrics, samples)

    def _windows(self, session: Session) -> torch.Tensor:
        documents = [session.encode(d.text) for d in read_corpus(self.corpus)]
        cut = [[d[i : i + self.window] for i in range(0, len(d) - self.window + 1, self.window)] for d in documents]
        deep = max(map(len, cut), default=0)
        turns = [c[i] for i in range(deep) for c in cut if i < len(c)]
        if not turns:
            raise ValueError(f"no document of {self.corpus!r} has {self.window} tokens: use a smaller window")
        return torch.tensor(turns[: self.windows], device=session.device)
