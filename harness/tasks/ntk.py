"""Training of NTK-Attention's state, which stands for a prefix.

Shapes: B windows, G key/value heads, J query heads of each, N sets of heads (G or G J), T rows, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ...models.feature_map import load_map
from ...models.methods.ntk import from_state
from ...models.residual_state import Share
from ...results import rules
from ...results.fields import Data, Within
from ..distil import Lesson, Plan, Pupil, distil
from ..lm import Session
from ..task import Outcome, Task
from ..windows import read_windows

HELD_OUT = ("prose",)  # what tasks measure on


@dataclass(frozen=True)
class Ntk(Task):
    """Z and k of each layer and head, trained by the error of attention's output; the model is frozen.

    NTK-Attention (arXiv 2406.14036), by layers. Rows after the first `prefix` attend each other exactly and the state
    in place of the prefix; the loss is the squared error of their output against full attention's, over that of the
    output itself, head by head (Adam, rate falling to zero by a cosine). Z and k start as the sums of phi(k) v and
    phi(k) over the prefix of the first window, times a factor that gives them the weight that the prefix has in the
    softmax. Artifact: layer.<i>.values [N, D, D], layer.<i>.norms [N, D],
    layer.<i>.scale [N, 1], float32. Metrics are relative errors on the
    last tenth of the windows, which teach nothing: with the prefix dropped, and before and after training.

    Arguments: `prefix` and `heads` are the method's own. `text: own` teaches the state what the first rows of different
    windows have in common; `text: shared` puts the first rows of the corpus before every window, for texts that will
    begin with them. `epochs`, `rate`, `at_once` windows a step, and `seed` of their order; `corpus`, `tokens`, `window`
    say what to read; text that other tasks measure on is refused.
    """

    prefix: Annotated[int, Within(1)] = 64
    heads: Literal["kv", "query"] = "kv"
    text: Literal["own", "shared"] = "own"
    epochs: Annotated[int, Within(1)] = 4
    rate: Annotated[float, Within(0, open_low=True)] = 0.1
    at_once: Annotated[int, Within(1)] = 1
    seed: Annotated[int, Within(0)] = 0
    corpus: Annotated[str, Data("harness/data")] = "calibration"
    tokens: Annotated[int, Within(256)] = 16384
    window: Annotated[int, Within(16)] = 512
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        seen = f"{self.corpus!r} is what tasks measure on: weights from it would have seen the test"
        rules.refuse(self, when=self.corpus in HELD_OUT, why=seen)

    def run(self, session: Session) -> Outcome:
        """Read the corpus, teach every layer."""
        windows = read_windows(session, self.corpus, self.tokens, self.window)
        if self.text == "shared":
            windows[:, : self.prefix] = windows[0, : self.prefix].clone()
        found = distil(session, _Prefix(self), windows, Plan(self.epochs, self.rate, self.at_once, self.seed))
        tensors = {f"layer.{i}.{n}": w.contiguous() for i, one in found.weights.items() for n, w in one.items()}
        return Outcome({"tokens": float(windows.numel()), **found.metrics()}, found.samples(), save(tensors))


class _Prefix(Pupil):
    """A state that stands for the first rows."""

    def __init__(self, task: Ntk) -> None:
        self.task, self.first = task, task.prefix

    def start(self, lesson: Lesson) -> dict[str, Tensor]:
        """The prefix's sums, at its weight in the softmax: the mean of the logarithm of what theirs lacks."""
        share = lesson.q.shape[2] if self.task.heads == "query" else 1
        k, v = lesson.k[:1, :, : self.first], lesson.v[:1, :, : self.first]
        phi = load_map("elu", None, 0).keys(k, {}).value
        size = phi.mean((2, 3)) * self.first  # so that one rate suits what is learned, however many rows there are
        sums = {"values": (phi.mT @ v)[0] / size[0, :, None, None], "norms": phi.sum(2)[0] / size[0, :, None]}
        state = {name: part.repeat_interleave(share, 0) for name, part in sums.items()}
        state["scale"] = torch.zeros_like(state["norms"][:, :1])
        own = lesson.scores()[..., : self.first].logsumexp(-1).flatten(1, 2)
        apart = own - from_state(lesson.q.flatten(1, 2), state).log
        scale = apart[:, :, self.first :].unflatten(1, (len(state["norms"]), -1)).mean((0, 2, 3))
        return {**state, "scale": scale[:, None]}

    def output(self, weights: Mapping[str, Tensor], lesson: Lesson) -> Tensor:
        """Later rows exactly, and the state."""
        scores = self._later(lesson)
        exact = Share(lesson.attended(scores).flatten(1, 2), scores.logsumexp(-1).flatten(1, 2))
        found = from_state(lesson.q.flatten(1, 2), weights)
        return found.merge(exact).view_as(lesson.q)

    def without(self, lesson: Lesson) -> Tensor:
        """Later rows alone."""
        return lesson.attended(self._later(lesson))

    def _later(self, lesson: Lesson) -> Tensor:
        """Scores without the prefix; its own rows, which nobody asks for, see themselves."""
        scores = lesson.scores()
        row = torch.arange(scores.shape[-1], device=scores.device)
        gone = (row < self.first) & (row[:, None] >= self.first)
        return scores.masked_fill(gone, -torch.inf)
