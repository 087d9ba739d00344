"""What a method's gaps change in the output of each attention layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ...models import attend
from ...models.call import Call
from ...models.memory import Memory
from ...results.fields import Data, Within
from ..lm import Session
from ..observe import Everything, batches, joined, observed_by
from ..task import Outcome, Task


@dataclass(frozen=True)
class OutputError(Task):
    """Relative error of the attention output against dense attention on the same queries, keys and values, by layer.

    |o - o*| / |o*|, both norms over the decoded rows of a window and over the heads joined (before the output
    projection), o* from every row; pooled over windows by the sums of squares, then averaged over layers. The first
    `prompt` tokens of each window are the prompt, the others are rows that the method acts on.

    Arguments: `corpus` a name in harness/data or a path; `window` tokens; `windows` how many at most; `prompt` tokens;
    `inputs: dense` lets every layer see what it would see in the dense model, so that a layer's error is its own,
    `inputs: method` what the method's layers before it made of the text.
    """

    corpus: Annotated[str, Data("harness/data")] = "prose"
    window: Annotated[int, Within(2)] = 1024
    windows: Annotated[int, Within(1)] = 4
    prompt: Annotated[int, Within(1)] = 512
    inputs: Literal["dense", "method"] = "dense"
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "output_error"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def run(self, session: Session) -> Outcome:
        """Compare; a sample for each layer holds its error, and those of its windows and query heads."""
        parts: list[Watch] = []
        for ids in batches(session, self.corpus, self.window, self.windows, self.prompt):
            watch = Watch(self.inputs)
            with observed_by(session, watch):
                session.score(ids, prompt=self.prompt)
            parts.append(watch)
        samples = []
        for layer in sorted(parts[0].sums):
            sums = torch.cat([part.sums[layer] for part in parts])
            samples.append(self._sample(layer, joined(session, sums, parts[0].groups, 1)))
        mean = sum(s["error"] for s in samples) / len(samples)
        return Outcome({"output_error": mean, "output_error_max": max(s["error"] for s in samples)}, samples)

    @staticmethod
    def _sample(layer: int, sums_WH2: Tensor) -> dict[str, Any]:
        return {
            "layer": layer,
            "error": float(_error(sums_WH2.sum((0, 1)))),
            "by_window": _error(sums_WH2.sum(1)).tolist(),
            "by_head": _error(sums_WH2.sum(0)).tolist(),
        }


def _error(sums: Tensor) -> Tensor:
    """Square root of the quotient of (..., 2) sums of squares."""
    return (sums[..., 0] / sums[..., 1]).sqrt()


@dataclass
class Watch:
    """Sums of squares by layer, [B, H, 2]: of the difference, and of the dense output."""

    inputs: str
    sums: dict[int, Tensor] = field(default_factory=dict)
    whole: Everything = field(default_factory=Everything)
    groups: int = 0

    def arrived(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Keep them all."""
        self.groups = k_BGTD.shape[1]
        self.whole.arrived(memory, k_BGTD, v_BGTD)

    def attended(self, memory: Memory, call: Call, q_BHTD: Tensor, out_BHTD: Tensor) -> Tensor:
        """Compare decoded rows with dense attention."""
        dense = attend.dense(q_BHTD, self.whole.of(memory), call)
        if call.phase == "decode":
            parts = (out_BHTD.double() - dense.double(), dense.double())
            new = torch.stack([part.square().sum((2, 3)) for part in parts], -1)
            self.sums[memory.site.layer] = self.sums.get(memory.site.layer, 0) + new
        return dense if self.inputs == "dense" else out_BHTD
