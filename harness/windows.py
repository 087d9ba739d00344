"""Windows of a corpus's tokens, for calibrations and for perplexity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .lm import Session
from .task import read_corpus


def read_windows(session: Session, corpus: str, tokens: int, window: int) -> Tensor:
    """At most `tokens` tokens of a corpus, [windows, window].

    Raises:
        ValueError: the corpus is shorter than one window.
    """
    stream = [t for d in read_corpus(corpus) for t in session.encode(d.text)][:tokens]
    count = len(stream) // window
    if not count:
        raise ValueError(f"{corpus!r} has {len(stream)} tokens, one window has {window}: use a smaller window")
    return torch.tensor(stream[: count * window], device=session.device).view(count, window)


@dataclass(frozen=True)
class Window:
    """Tokens of which those after the first `prompt` are scored."""

    id: str
    tokens: Sequence[int]
    prompt: int


def cut(
    stream: Sequence[int], window: int, prompt: int, stride: int | None, rest: Literal["drop", "keep"]
) -> list[Window]:
    """Windows over one stream.

    Without a stride they are apart, and of each the tokens after its first `prompt` are scored. With a stride they
    overlap, and each scores what the one before it had not (the first one all after its prompt). A last, shorter window
    is kept or dropped.
    """
    step = window if stride is None else stride
    found: list[Window] = []
    scored = 0  # end of what is scored
    for start in range(0, len(stream), step):
        part = stream[start : start + window]
        if len(part) < window and rest == "drop":
            break
        mine = prompt if stride is None or not found else scored - start
        if mine < len(part):
            found.append(Window(str(len(found)), part, mine))
            scored = start + len(part)
        if len(part) < window or (stride is not None and start + window >= len(stream)):
            break
    return found
