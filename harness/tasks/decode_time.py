"""Time of decoding, on the same path that is scored."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Annotated, Any, ClassVar, Literal

import torch

from ...kernels.clock import copy_gb_s, refuse_other_gpu
from ...models import ledger
from ...models.pin import ALIGNED_ROWS
from ...results.fields import Data, Within
from ..dense_cost import against_dense, dense_attention_ms
from ..engine import WARM_UP, Engine, Pick, Sampled, copied, engine, greedy
from ..gpu_watch import GpuWatches, intruders, samples, summary
from ..lm import Session, State
from ..parity import Parity, checked
from ..stages import stage_ms
from ..task import Outcome, Task, read_corpus
from ..timeline import Timeline
from ..timing import EnergyMeter, HostClock, MemoryMeter, quantile, times_ms, weight_bytes

ENERGY_MS = 1000.0
WARM_UP_TOKENS = 4096  # of a prompt: kernels are loaded and handles made before a prefill is timed
PROFILED = 8  # steps of the stage breakdown, after those that are timed


@dataclass(frozen=True)
class DecodeTime(Task):
    """Time to first token and time per output token after a prompt of real prose, prefill and decode apart.

    The slowest rank counts. Peak and resident memory are of this rank's process or GPU. Energy is summed over the
    ranks, on GPUs and where the steps take a second or more: NVML's counter is too coarse for less. On a GPU bytes per
    second, the copy bandwidth measured before, the speed-up that bytes allow against dense attention in the same step
    (ideal) and if attention cost nothing (Amdahl), the time of each stage, and, with dense attention over as many rows
    timed in the same process, the gain, its part of the ideal, and the context from which on there is one. Beside each
    step's time stands how long the host took to launch it; beside all of them, where NVML is, the clock of the slowest
    GPU and the power of all. Samples of phase `gpu` say what held a clock down in each part that is `timed`; a GPU
    that another process had open in any makes the record invalid. Samples of phase `memory` are what the cache
    holds after the prompt and after steps: each on a CPU; on a GPU those of the warm-up and the last that is timed,
    since nothing comes between timed ones. Timed steps are held against their budgets once the time is taken, so
    that methods with a budget do nothing in a step that dense attention does not.

    Before anything is timed, the ops of one step are held against float64 on this run's own cache, and a replayed step
    against the same step made eagerly; the record has the digest of that, and is invalid where it failed.

    Arguments: `batch` texts at once; `prompt` tokens each; `steps` timed, after `warmup` that are not; `prefills`
    timed. `engine: dynamic` is the path that scores use; `static` has caches of fixed places; `graph` replays these
    steps from one CUDA graph; methods that drop a row for each new one (`h2o`, `tova`, `streaming_llm`,
    `linear_residual`, `ratchetkv`) then need a prompt longer than their budget, unless they cut once and grow, and
    those whose shapes change are refused. `layers: fused` makes one launch each of norm and residual, rotation,
    gate, and each product, in half precision and of up to 32 texts by a kernel of ours (Llama-shaped models, not
    `dynamic`). `fill: copy` prefills one text and copies its cache, where a batch of long prompts would take minutes:
    the time to first token is then that of one text. `temperature` 0 is greedy. `gpu` is a part of the name that the
    GPU must have.
    """

    batch: Annotated[int, Within(1)] = 1
    prompt: Annotated[int, Within(2)] = 1024
    steps: Annotated[int, Within(2)] = 32
    warmup: Annotated[int, Within(0)] = 4
    prefills: Annotated[int, Within(1)] = 3
    engine: Literal["dynamic", "static", "graph"] = "dynamic"
    layers: Literal["own", "fused"] = "own"
    fill: Literal["prefill", "copy"] = "prefill"
    temperature: Annotated[float, Within(0)] = 0.0
    gpu: str = ""
    corpus: Annotated[str, Data("harness/data")] = "prose"
    version: ClassVar[int] = 4
    headline: ClassVar[str] = "decode_ms_median"
    better: ClassVar[Literal["lower", "higher"]] = "lower"

    def __post_init__(self) -> None:
        if self.engine == "dynamic" and self.layers == "fused":
            raise ValueError("decode_time fuses layers of steps at fixed places: set engine: graph (or static)")

    def run(self, session: Session) -> Outcome:
        """Time prefills, then steps; one sample each."""
        refuse_other_gpu(self.gpu, session.device)
        watches = GpuWatches(session.device)
        with watches.over("copy"):
            ceiling = copy_gb_s(session.device) if session.device.type == "cuda" else None
        session.binding.room = self.prompt + self._room + ALIGNED_ROWS - 1  # an engine takes a few rows more
        texts = self._prompts(session)
        memory = MemoryMeter(session.device)
        first, state = self._prefilled(session, texts, watches)
        session.binding.reset()
        beside = _Beside(Timeline(session, state.cache), watches)
        beside.held.note("prefill")
        if self.engine == "dynamic":
            return self._outcome(session, first, ceiling, memory, self._dynamic(session, state, beside))
        with engine(session, state, self._room, self._pick, self.layers) as steps:
            return self._outcome(session, first, ceiling, memory, self._fixed(session, steps, beside))

    @property
    def _room(self) -> int:
        return 2 + WARM_UP + self.warmup + self.steps + PROFILED

    @property
    def _pick(self) -> Pick:
        return Sampled(self.temperature) if self.temperature else greedy

    def _prompts(self, session: Session) -> list[list[int]]:
        tokens = [t for d in read_corpus(self.corpus) for t in session.encode(d.text)]
        stream = cycle(tokens)
        count = 1 if self.fill == "copy" else self.batch
        return [list(islice(stream, self.prompt)) for _ in range(count)]

    def _prefilled(self, session: Session, texts: list[list[int]], watches: GpuWatches) -> tuple[list[float], State]:
        """Times of the prefills, and what the last of them left: a long prompt is not read again to fill a cache."""
        made: list[State] = []

        def prefill() -> None:
            made.clear()
            made.append(session.prefill(texts))

        session.prefill([text[:WARM_UP_TOKENS] for text in texts])
        with watches.over("prefill"):
            mine = times_ms(prefill, self.prefills, 0, session.device)
        first = _slowest(session, mine)
        state = made.pop()
        return first, copied(session, state, self.batch) if self.fill == "copy" else state

    def _dynamic(self, session: Session, state: State, beside: _Beside) -> _Steps:
        token = self._pick(state.logits)

        def step() -> None:
            nonlocal token
            token = self._pick(session.step(state, token))

        with checked() as parity:
            step()
        return self._timed(session, step, parity, lambda: state.logits, beside)

    def _fixed(self, session: Session, steps: Engine, beside: _Beside) -> _Steps:
        with checked() as parity:
            steps.step()
        if self.engine == "graph":
            steps.capture()
            parity.replay = steps.agrees()
        return self._timed(session, steps.step, parity, lambda: steps.logits, beside)

    def _timed(
        self,
        session: Session,
        step: Callable[[], None],
        parity: Parity,
        logits: Callable[[], torch.Tensor],
        beside: _Beside,
    ) -> _Steps:
        note = partial(beside.held.note, "decode")
        for _ in range(self.warmup):
            step()
            note()
        host, audit = HostClock(step), session.binding.ledger.audit
        with audit.put_off(), beside.gpus.over("decode"):  # `full` has no budget to be held against: none takes time
            meter = EnergyMeter(session.device)
            mine = times_ms(host, self.steps, 0, session.device, note)
            spent = meter.joules()
        times, launches = _slowest(session, mine), _slowest(session, host.ms)
        joules = [j for j in session.lm.world.gather(spent) if j is not None]
        energy = sum(joules) if joules and sum(times) >= ENERGY_MS else None
        with beside.gpus.over("stages"):
            stages = _stages(session.device, step)
        complaints = [c for c in session.lm.world.gather(parity.complaint) if c]
        if not logits().isfinite().all():
            complaints.append("the last step's logits are not finite")
        told = "; ".join(sorted(set(complaints)))
        return _Steps(times, launches, energy, stages, parity.sample(), told, beside)

    def _outcome(
        self, session: Session, first: list[float], ceiling: float | None, memory: MemoryMeter, steps: _Steps
    ) -> Outcome:
        metrics = self._metrics(first, steps.ms) | memory.read() | _bytes(session, self.batch, steps.ms, ceiling)
        metrics |= {f"stage_{name}_ms": ms for name, ms in steps.stages.items()}
        metrics["launch_ms_median"] = quantile(steps.launch_ms, 0.5)
        if steps.joules is not None:
            metrics["energy_j_per_token"] = steps.joules / (self.batch * self.steps)
        if steps.stages:
            metrics |= self._against_dense(session, metrics, steps)
        gpus = session.lm.world.gather(steps.beside.gpus.parts)
        metrics |= summary([parts["decode"] for parts in gpus])
        told = [c for c in (steps.complaint, intruders(gpus, session.lm.world.gather(os.getpid()))) if c]
        return Outcome(metrics, self._samples(session, first, steps) + samples(gpus), invalid="; ".join(told))

    def _samples(self, session: Session, first: list[float], steps: _Steps) -> list[dict[str, Any]]:
        raw: list[dict[str, Any]] = [{"phase": "prefill", "ms": ms} for ms in first]
        both = zip(steps.ms, steps.launch_ms, strict=True)
        raw += [{"phase": "decode", "ms": ms, "launch_ms": launch_ms} for ms, launch_ms in both]
        told = steps.parity | {"engine": self.engine, "sums": session.lm.shard.sums}
        return [*raw, *steps.beside.held.samples(), told]

    def _against_dense(self, session: Session, metrics: dict[str, float], steps: _Steps) -> dict[str, float]:
        """The slowest rank's dense attention counts; nothing where it does not fit beside the cache."""
        rows = self.prompt + self._room - PROFILED
        with steps.beside.gpus.over("dense"):
            mine = dense_attention_ms(session, self.batch, rows)
        ranks = session.lm.world.gather(mine)
        known = [ms for ms in ranks if ms is not None]
        if len(known) < len(ranks):
            return {}
        return against_dense(metrics["decode_ms_median"], steps.stages, max(known), rows, metrics)

    def _metrics(self, first: list[float], steps: list[float]) -> dict[str, float]:
        spread = {f"decode_ms_p{p}": quantile(steps, p / 100) for p in (10, 90, 99)}
        texts = 1 if self.fill == "copy" else self.batch
        return {
            "ttft_ms": quantile(first, 0.5),
            "prefill_tok_s": texts * self.prompt / (quantile(first, 0.5) / 1e3),
            "decode_ms_median": quantile(steps, 0.5),
            **spread,
            "decode_tok_s": self.batch * len(steps) / (sum(steps) / 1e3),
        }


@dataclass(frozen=True)
class _Beside:
    """What is noted beside the times: what the cache holds, and the state of this rank's GPU."""

    held: Timeline
    gpus: GpuWatches


@dataclass(frozen=True)
class _Steps:
    """Raw times, launches, energy, times of stages, what was verified, and what was noted beside."""

    ms: list[float]
    launch_ms: list[float]
    joules: float | None
    stages: dict[str, float]
    parity: dict[str, Any]
    complaint: str
    beside: _Beside


def _slowest(session: Session, times: list[float]) -> list[float]:
    return torch.tensor(session.lm.world.gather(times), dtype=torch.float64).amax(0).tolist()


def _stages(device: torch.device, step: Callable[[], None]) -> dict[str, float]:
    return stage_ms(step, PROFILED) if device.type == "cuda" else {}


def _bytes(session: Session, batch: int, ms: list[float], ceiling_gb_s: float | None) -> dict[str, float]:
    """Bytes that a step must read, and what they would allow; all ranks together."""
    tables = session.lm.world.gather(session.binding.ledger.sums())
    weights = sum(session.lm.world.gather(weight_bytes(session.lm.model)))
    decode = ledger.summary(tables)["decode"]
    read, dense = (batch * decode[f"bytes_{kind}_per_token"] for kind in ("read", "dense"))
    found = {
        "step_gb": (weights + read) / 1e9,
        "read_share": read / dense,
        "ideal_gain": (weights + dense) / (weights + read),
        "amdahl_gain": (weights + dense) / weights,
    }
    if ceiling_gb_s is not None:  # of one GPU
        ranks = session.lm.world.ranks.size
        achieved = (weights + read) / (quantile(ms, 0.5) * 1e6) / ranks
        found |= {"achieved_gb_s": achieved, "ceiling_gb_s": ceiling_gb_s}
        found |= {"percent_of_ceiling": 100 * achieved / ceiling_gb_s}
    return found
