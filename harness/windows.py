"""Text for calibrations: one stream of a corpus's tokens, cut into windows of equal length."""

from __future__ import annotations

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
