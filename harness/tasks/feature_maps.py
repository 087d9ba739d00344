"""Training of learned feature maps, for the linear residual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

from ...models.feature_map import Trained, generators, load_map
from ...results import rules
from ...results.fields import Data, Module, Within
from ..distil import Lesson, Plan, Pupil, distil
from ..lm import Session
from ..task import Outcome, Task
from ..windows import read_windows

HELD_OUT = ("prose",)  # what tasks measure on


@dataclass(frozen=True)
class FeatureMaps(Task):
    """A learned feature map for each layer and key/value head, by the error of attention's output; the model is frozen.

    As LESS (arXiv 2402.09398) and LoLCATs (arXiv 2410.10254) train theirs: each layer by itself, on what it sees under
    full attention. A row attends its first `sinks` and its last rows, `exact` in all, exactly, and all others through
    the map; the loss is the squared error of the output, over that of the output itself, head by head (Adam, rate
    falling to zero by a cosine). Artifact: layer.<i>.<weight> [G, ...], float32. Metrics are relative errors on the
    last tenth of the windows, which teach nothing: with the other rows dropped, and before and after training.

    Arguments: `features`, `width` and `seed` are the method's own; `exact` and `sinks` rows attended exactly; `epochs`,
    `rate` and `at_once` windows a step; `corpus`, `tokens`, `window` say what to read; text that other tasks measure
    on is refused.
    """

    features: Annotated[str, Module("models/feature_maps")] = "hedgehog"
    width: Annotated[int, Within(1)] | None = None
    seed: Annotated[int, Within(0)] = 0
    sinks: Annotated[int, Within(0)] = 4
    exact: Annotated[int, Within(1)] = 64
    epochs: Annotated[int, Within(1)] = 4
    rate: Annotated[float, Within(0, open_low=True)] = 1e-2
    at_once: Annotated[int, Within(1)] = 1
    corpus: Annotated[str, Data("harness/data")] = "calibration"
    tokens: Annotated[int, Within(256)] = 16384
    window: Annotated[int, Within(16)] = 512
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        seen = f"{self.corpus!r} is what tasks measure on: weights from it would have seen the test"
        rules.refuse(self, when=self.corpus in HELD_OUT, why=seen)
        none = f"{self.exact} exact rows are all sinks: raise exact"
        rules.refuse(self, when=self.sinks >= self.exact, why=none)
        nothing = f"{self.features} has nothing to learn"
        rules.refuse(self, when=not load_map(self.features, self.width, self.seed).trained, why=nothing)

    def run(self, session: Session) -> Outcome:
        """Read the corpus, teach every layer."""
        pupil = _MapPupil(self)
        windows = read_windows(session, self.corpus, self.tokens, self.window)
        found = distil(session, pupil, windows, Plan(self.epochs, self.rate, self.at_once, self.seed))
        tensors = {f"layer.{i}.{n}": w.contiguous() for i, one in found.weights.items() for n, w in one.items()}
        return Outcome({"tokens": float(windows.numel()), **found.metrics()}, found.samples(), save(tensors))


class _MapPupil(Pupil):
    """A map that stands for all but sinks and recent rows."""

    def __init__(self, task: FeatureMaps) -> None:
        self.task, self.first = task, task.exact
        found = load_map(task.features, task.width, task.seed)
        assert isinstance(found, Trained)
        self.map = found

    def start(self, lesson: Lesson) -> dict[str, Tensor]:
        """The map's own, its scale such that what is dropped weighs as much as in the softmax, in the mean of logs."""
        site = lesson.site
        weights = self.map.start(len(site.kv_heads), site.head_dim, generators(self.task.seed, site))
        on_device = {name: part.to(lesson.q.device) for name, part in weights.items()}
        scores, rows = lesson.scores(), slice(self.first, None)
        gone = ~self._dropped(scores)
        wanted, found = (x.masked_fill(gone, -torch.inf).logsumexp(-1) for x in (scores, self._logs(on_device, lesson)))
        return {**weights, "scale": (wanted - found)[..., rows].mean((0, 2, 3))[:, None].to(weights["scale"])}

    def output(self, weights: Mapping[str, Tensor], lesson: Lesson) -> Tensor:
        """One softmax over exact scores and logarithms of products of features."""
        scores = lesson.scores()
        return lesson.attended(torch.where(self._dropped(scores), self._logs(weights, lesson), scores))

    def _logs(self, weights: Mapping[str, Tensor], lesson: Lesson) -> Tensor:
        """Logarithm of phi(q) . phi(k), [B, G, J, T, T]."""
        q = self.map.queries(lesson.q.flatten(2, 3), weights, None)
        k = self.map.keys(lesson.k, weights)
        product = (q.value @ k.value.mT).clamp(min=torch.finfo(q.value.dtype).tiny).log()
        return (product + q.log[..., None] + k.log[:, :, None]).view(*lesson.q.shape[:4], -1)

    def without(self, lesson: Lesson) -> Tensor:
        """Sinks and recent rows alone."""
        scores = lesson.scores()
        return lesson.attended(scores.masked_fill(self._dropped(scores), -torch.inf))

    def _dropped(self, scores: Tensor) -> Tensor:
        """Which rows [T, T] a row no longer has."""
        row = torch.arange(scores.shape[-1], device=scores.device)
        recent = self.task.exact - self.task.sinks
        return (row >= self.task.sinks) & (row <= row[:, None] - recent)
