"""Time of decoding, on the same path that is scored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated, ClassVar, Literal

import torch

from ...results.fields import Data, Within
from ..lm import Session, State
from ..task import Outcome, Task, read_corpus
from ..timing import EnergyMeter, MemoryMeter, quantile, times_ms

ENERGY_MS = 1000.0


@dataclass(frozen=True)
class DecodeTime(Task):
    """Time to first token and time per output token after a prompt of real prose, prefill and decode apart.

    Greedy decoding; the slowest rank counts. Peak and resident memory are of this rank's process or GPU. Energy is
    summed over the ranks, on GPUs and where the steps take a second or more: NVML's counter is too coarse for less.

    Arguments: `batch` texts at once; `prompt` tokens each; `steps` timed, after `warmup` that are not; `prefills`
    timed.
    """

    batch: Annotated[int, Within(1)] = 1
    prompt: Annotated[int, Within(2)] = 1024
    steps: Annotated[int, Within(2)] = 32
    warmup: Annotated[int, Within(0)] = 4
    prefills: Annotated[int, Within(1)] = 3
    corpus: Annotated[str, Data("harness/data")] = "prose"
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "decode_ms_median"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def run(self, session: Session) -> Outcome:
        """Time prefills, then steps; one sample each."""
        texts = self._prompts(session)
        memory = MemoryMeter(session.device)
        first = self._slowest(session, times_ms(lambda: session.prefill(texts), self.prefills, 1, session.device))
        state = session.prefill(texts)
        session.binding.reset()
        steps, joules = self._steps(session, state)
        metrics = self._metrics(first, steps) | memory.read()
        if joules is not None:
            metrics["energy_j_per_token"] = joules / (self.batch * self.steps)
        samples = [{"phase": "prefill", "ms": ms} for ms in first] + [{"phase": "decode", "ms": ms} for ms in steps]
        return Outcome(metrics, samples)

    def _prompts(self, session: Session) -> list[list[int]]:
        tokens = [t for d in read_corpus(self.corpus) for t in session.encode(d.text)]
        stream = cycle(tokens)
        return [list(islice(stream, self.prompt)) for _ in range(self.batch)]

    def _steps(self, session: Session, state: State) -> tuple[list[float], float | None]:
        token = state.logits.argmax(-1)

        def step() -> None:
            nonlocal token
            token = session.step(state, token).argmax(-1)

        for _ in range(self.warmup):
            step()
        meter = EnergyMeter(session.device)
        times = self._slowest(session, times_ms(step, self.steps, 0, session.device))
        joules = [j for j in session.lm.world.gather(meter.joules()) if j is not None]
        return times, sum(joules) if joules and sum(times) >= ENERGY_MS else None

    @staticmethod
    def _slowest(session: Session, times: list[float]) -> list[float]:
        return torch.tensor(session.lm.world.gather(times), dtype=torch.float64).amax(0).tolist()

    def _metrics(self, first: list[float], steps: list[float]) -> dict[str, float]:
        spread = {f"decode_ms_p{p}": quantile(steps, p / 100) for p in (10, 90, 99)}
        rate = self.batch * len(steps) / (sum(steps) / 1e3)
        return {
            "ttft_ms": quantile(first, 0.5),
            "decode_ms_median": quantile(steps, 0.5),
            **spread,
            "decode_tok_s": rate,
        }
