"""Perplexity of held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch

from ...results.fields import Data, Within
from ..lm import TOKENS_AT_ONCE, Session
from ..task import Outcome, Task, read_corpus
from ..windows import Window, cut


@dataclass(frozen=True)
class Perplexity(Task):
    """exp of the mean negative log-likelihood a token, over windows of held-out text.

    Every token after a window's prompt is scored from a row that the method acted on, as it would act in generation:
    that is why a method for decoding shows its loss here. Both averages are recorded whatever `average` says. Protocols
    by name, such as Loki's or a tail after a prompt, are in docs/evaluations.md.

    Arguments: `corpus` a name in harness/data, a file or a dataset of the Hub, `field` its text; `window` tokens;
    `windows` how many at most (none: all); `prompt` tokens of each window that are prefilled and not scored, which is
    what a budget that is a share of the prompt counts from; `stride`: windows overlap and each scores its last `stride`
    tokens (none: windows are apart); `join`: windows are cut from each document in turn, or from one stream of all of
    them with an empty line between ("stream"); `rest`: what happens to a last, shorter window; `average`: over tokens,
    or the mean of the windows' means (Loki's); `bos`: a beginning-of-sequence token before nothing, the stream (or each
    document), or each window.
    """

    corpus: Annotated[str, Data("harness/data", by="field")] = "prose"
    field: str = "text"
    window: Annotated[int, Within(2)] = 1024
    windows: Annotated[int, Within(1)] | None = 8
    prompt: Annotated[int, Within(1)] = 1
    stride: Annotated[int, Within(1)] | None = None
    join: Literal["documents", "stream"] = "documents"
    rest: Literal["drop", "keep"] = "drop"
    average: Literal["tokens", "windows"] = "tokens"
    bos: Literal["none", "stream", "window"] = "none"
    version: ClassVar[int] = 2
    headline: ClassVar[str] = "perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def __post_init__(self) -> None:
        if self.prompt >= self.window:
            raise ValueError(f"perplexity: a prompt of {self.prompt} tokens leaves nothing of {self.window} to score")
        if self.stride is not None and self.stride > self.window - self.prompt:
            most = self.window - self.prompt
            raise ValueError(f"perplexity: a stride of {self.stride} would leave tokens out, at most {most} fits")

    def run(self, session: Session) -> Outcome:
        """Score every window; samples hold each window's sum, and its weight where that is not its tokens."""
        windows = self._windows(session)
        session.mind(max(len(w.tokens) for w in windows))
        samples = session.each(windows, _batches, lambda batch: _score(session, batch))
        if self.average == "windows":  # else a window weighs as much as its tokens
            samples = [{**s, "weight": 1} for s in samples]
        losses, tokens = [s["nll_nats"] for s in samples], [s["tokens"] for s in samples]
        means = {
            "tokens": sum(losses) / sum(tokens),
            "windows": sum(x / n for x, n in zip(losses, tokens, strict=True)) / len(samples),
        }
        metrics = {
            "perplexity": math.exp(means[self.average]),
            "perplexity_tokens": math.exp(means["tokens"]),
            "perplexity_windows": math.exp(means["windows"]),
            "nll_nats_per_token": means["tokens"],
            "tokens": float(sum(tokens)),
        }
        return Outcome(metrics, samples)

    def _windows(self, session: Session) -> list[Window]:
        first = self._bos(session)
        room = self.window - len(first) * (self.bos == "window")
        parts: list[list[Window]] = []
        longest = 0
        for stream in self._streams(session, first if self.bos == "stream" else []):
            longest = max(longest, len(stream))
            found = cut(stream, room, self.prompt - self.window + room, self.stride, self.rest)
            parts += [found] if found else []
            if len(parts) == self.windows:  # documents take turns: no further one would be read from
                break
        turns = [p[i] for i in range(max(map(len, parts), default=0)) for p in parts if i < len(p)]
        if not turns:
            raise ValueError(
                f"no document of {self.corpus!r} has {room} tokens (the longest has {longest}): "
                "use a smaller window, rest: keep, or join: stream"
            )
        if self.bos == "window":
            turns = [replace(w, tokens=[*first, *w.tokens], prompt=w.prompt + len(first)) for w in turns]
        return [replace(w, id=str(i)) for i, w in enumerate(turns[: self.windows])]

    def _bos(self, session: Session) -> list[int]:
        token = session.lm.tokenizer.bos_token_id
        if self.bos != "none" and token is None:
            raise ValueError(
                f"bos is {self.bos!r}, but the tokenizer has no beginning-of-sequence token: use bos: none"
            )
        return [] if self.bos == "none" else [int(token)]

    def _streams(self, session: Session, first: list[int]) -> Iterator[list[int]]:
        texts = [d.text for d in read_corpus(self.corpus, self.field)]
        for text in ["\n\n".join(texts)] if self.join == "stream" else texts:
            yield [*first, *session.encode(text)]


def _batches(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows of equal shape, so that none is padded."""
    batch: list[Window] = []
    for one in sorted(windows, key=lambda w: (-len(w.tokens), w.prompt)):
        alike = bool(batch) and (len(batch[0].tokens), batch[0].prompt) == (len(one.tokens), one.prompt)
        if batch and (not alike or (len(batch) + 1) * len(one.tokens) > TOKENS_AT_ONCE):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _score(session: Session, batch: list[Window]) -> list[Mapping[str, Any]]:
    ids = torch.tensor([list(w.tokens) for w in batch], device=session.device)
    prompt = batch[0].prompt
    losses = (-session.score(ids, prompt).double().sum(1)).tolist()
    tokens = ids.shape[1] - prompt
    return [
        {"window": int(w.id), "nll_nats": x, "tokens": tokens, "prompt_tokens": prompt, "completion_tokens": tokens}
        for w, x in zip(batch, losses, strict=True)
    ]
