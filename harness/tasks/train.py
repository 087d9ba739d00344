"""Train a model, or go on with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ...results.fields import Data, Within
from ..lm import Session
from ..task import Outcome, Task
from ..training.session import Training


@dataclass(frozen=True)
class Train(Task):
    """Train the cell's model ({new: SHAPE}, or a checkpoint that goes on) on text; the artifact is the trained model.

    Ranks share the data and give the same result for any number of them. A run that was cut off goes on from its last
    saved state. Under bfloat16, products are rounded, weights are not. The method is `full`; what attends in
    training is `attention`: `standard`; `landmark` (arXiv 2305.16300: grouped softmax over blocks that landmark tokens
    close); `recurrent` (Transformer-XL, arXiv 1901.02860: windows that see the one before).

    Arguments, text: `corpus` files; `tokens` in all; stages of rows of `lengths` tokens, each with its share (`shares`)
    of the tokens and the share of rows that were `planted` in; `mix` of the plants: facts, variables, words, keys,
    copies, passkeys; `answer` the weight of a planted answer's tokens. Steps: `step_tokens` each, `part_tokens` at
    once; `optimiser` with `rate` (AdamW) and `matrix_rate` (Muon), `weight_decay`, `clip`; rates rise over the share
    `warmup` of the steps and fall over the share `decay`, to `floor`. Landmarks: one every `block` tokens, at `places`;
    `kernel: eager` does without the fused one also on a GPU; `group_dropout` of blocks; `control` the share of
    landmarks under the control token; `jump` of positions after each. `window` of the recurrence.
    `weights: sharded` cuts weights and moments over the ranks. `heldout` text is scored in
    windows of each of `heldout_lengths` (default: the last length), `heldout_windows` at most; the perplexity at the
    first is the headline. State is kept every `save_steps`.
    The curve has about `points` points; at each the host waits for the device. On a GPU a part's passes are launched as
    one CUDA graph where they are the same each time; `launch: call` does without. `sums: ordered` takes kernels there
    that add up in the same order each time, so that a run taken up again gives the same curve bit for bit; `free` takes
    the fastest, and the curve is near that one.
    """

    corpus: tuple[Annotated[str, Data("harness/data")], ...] = ("calibration",)
    heldout: Annotated[str, Data("harness/data")] = "prose"
    heldout_lengths: tuple[Annotated[int, Within(2)], ...] | None = None
    heldout_windows: Annotated[int, Within(1)] = 64
    tokens: Annotated[int, Within(1)] = 1_000_000
    lengths: tuple[Annotated[int, Within(2)], ...] = (512,)
    shares: tuple[Annotated[float, Within(0, 1)], ...] = (1.0,)
    planted: tuple[Annotated[float, Within(0, 1)], ...] = (0.0,)
    mix: tuple[Annotated[float, Within(0, 1)], ...] = (0.4, 0.1, 0.1, 0.1, 0.2, 0.1)
    answer: Annotated[float, Within(0)] = 4.0
    step_tokens: Annotated[int, Within(2)] = 65536
    part_tokens: Annotated[int, Within(2)] = 65536
    optimiser: Literal["muon", "adamw"] = "muon"
    rate: Annotated[float, Within(0, open_low=True)] = 0.003
    matrix_rate: Annotated[float, Within(0, open_low=True)] = 0.02
    weight_decay: Annotated[float, Within(0)] = 0.0
    clip: Annotated[float, Within(0, open_low=True)] | None = 1.0
    warmup: Annotated[float, Within(0, 1)] = 0.02
    decay: Annotated[float, Within(0, 1)] = 0.4
    floor: Annotated[float, Within(0, 1)] = 0.0
    attention: Literal["standard", "landmark", "recurrent"] = "standard"
    block: Annotated[int, Within(1)] = 50
    places: Literal["fixed", "random"] = "fixed"
    kernel: Literal["fused", "eager"] = "fused"
    group_dropout: Annotated[float, Within(0, 0.99)] = 0.0
    control: Annotated[float, Within(0, 1)] = 0.0
    jump: Annotated[int, Within(0)] = 0
    window: Annotated[int, Within(1)] = 256
    weights: Literal["replicated", "sharded"] = "replicated"
    save_steps: Annotated[int, Within(1)] = 500
    points: Annotated[int, Within(1)] = 200
    launch: Literal["graph", "call"] = "graph"
    sums: Literal["ordered", "free"] = "ordered"
    version: ClassVar[int] = 4
    headline: ClassVar[str] = "heldout_perplexity"
    better: ClassVar[Literal["lower", "higher"]] = "lower"
    ranks: ClassVar[Literal["tensor", "data"]] = "data"

    def __post_init__(self) -> None:
        if self.attention != "landmark" and (self.group_dropout or self.control or self.jump):
            raise ValueError("train: group_dropout, control and jump are of `attention: landmark`; leave them out")
        if self.weights == "sharded" and self.optimiser == "muon":
            raise ValueError("train: Muon needs whole matrices: take `optimiser: adamw` with `weights: sharded`")
        if self.attention == "landmark" and (wrong := [n for n in self.lengths if n % self.block]):
            near = max(1, round(wrong[0] / self.block)) * self.block
            raise ValueError(
                f"train: a landmark every {self.block} tokens does not divide a length of {wrong[0]}: take {near}"
            )

    def run(self, session: Session) -> Outcome:
        """Prepare the text, train, score held-out text, hand over the model; the curve is in the samples."""
        if session.cell.method.name != "full":
            raise ValueError(f"train: the method is {session.cell.method.name}, expected full")
        return Training(self, session).outcome()
