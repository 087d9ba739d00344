"""Decode steps that ask the host nothing: the places of caches are fixed, and on a GPU one CUDA graph holds a step.

The same code steps eagerly on a CPU, where tests hold it equal to the ordinary path: tokens, logits and ledger.

Shapes: B texts, V vocabulary, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..models.bind import attention
from ..models.fuse import fused_layers
from ..models.pin import changed, pin
from ..models.step_ledger import StepLedger
from .lm import Session, State

Pick = Callable[[Tensor], Tensor]
Layers = Literal["own", "fused"]
WARM_UP = 3  # steps before a capture: kernels are compiled, handles made and counts begun


def greedy(logits_BV: Tensor) -> Tensor:
    """The likeliest token of each text, [B]."""
    return logits_BV.argmax(-1)


@dataclass(frozen=True)
class Sampled:
    """A token by its probability at a temperature, from torch's own generator; [B].

    Noise is drawn on the device and the largest quotient taken: equal in distribution to a multinomial draw, without
    asking the host. Ranks that share a model draw alike, since they share the seed.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"a temperature is above 0, got {self.temperature}: greedy decoding needs none")

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Draw one token for each text."""
        share_BV = (logits_BV / self.temperature).softmax(-1)
        return (share_BV / torch.empty_like(share_BV).exponential_()).argmax(-1)


def copied(session: Session, state: State, texts: int) -> State:
    """The first text of a batch, so many times, each with a cache of its own."""
    first = torch.zeros(texts, dtype=torch.long, device=state.logits.device)
    state.cache.reorder_cache(first)
    binding = session.binding
    binding.first = None if binding.first is None else binding.first[first]
    mask = None if state.mask is None else state.mask[first]
    return State(state.cache, mask, state.length[first], state.logits[first])


class Engine:
    """Steps of one batch of texts after its prompt.

    Args:
        session: the model under a method.
        state: texts whose prompt was fed; its cache is the engine's from now on.
        steps: the most that will be made, warm-up included.
        pick: how a token is chosen from logits.
        layers: "fused" for few launches between the matrix products (Llama-shaped models), "own" for the model's code.

    Attributes:
        logits: [B, V] of the last step, float32.
        token: [B] chosen last; fed by the next step.
        made: how many steps were made.
        captured: whether steps are replays.
    """

    def __init__(self, session: Session, state: State, steps: int, pick: Pick = greedy, layers: Layers = "own") -> None:
        self._layers = partial(fused_layers, session.lm.model, attention) if layers == "fused" else nullcontext
        self.session, self.pick, self.steps = session, pick, steps
        self.cache, binding = state.cache, session.binding
        self.clock = pin(binding, self.cache, steps)
        self.ledger = StepLedger(before=binding.ledger, clock=self.clock, method=session.method)
        binding.ledger = self.ledger
        self.logits = state.logits.clone()
        self.token = pick(self.logits)
        self.made = 0
        self._tokens_BN = self.token.new_zeros(self.token.shape[0], steps + 1)
        self._tokens_BN[:, 0] = self.token
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def captured(self) -> bool:
        """Whether steps are replays of a graph."""
        return self._graph is not None

    @property
    def tokens_BN(self) -> Tensor:
        """All tokens chosen so far: the first from the prompt's logits, one from each step."""
        return self._tokens_BN[:, : self.made + 1]

    def step(self) -> None:
        """Feed the last token and choose the next.

        Raises:
            ValueError: all steps that there is room for were made.
        """
        if self.made == self.steps:
            raise ValueError(f"there is room for {self.steps} steps, and all were made")
        self.made += 1
        if self._graph is None:
            self._once()
        else:
            self._graph.replay()

    @torch.no_grad()
    def _once(self) -> None:
        self.clock.tick()
        self.session.binding.feeding = "decode"
        with self._layers():
            out = self.session.lm.model(
                input_ids=self.token[:, None],
                position_ids=(self.clock.context_BT - 1).clamp(min=0),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self.ledger.close()
        self.logits.copy_(out.logits[:, -1])
        self.token.copy_(self.pick(self.logits))
        place = self.clock.row - (self.clock.begun - 1)
        self._tokens_BN.index_copy_(1, place, self.token[:, None])

    def capture(self) -> None:
        """Warm up by real steps, then record one step into a graph; those after it are replays.

        Raises:
            ValueError: there is no GPU.
        """
        if self.token.device.type != "cuda":
            raise ValueError("a step is captured on a CUDA device; here the same steps run eagerly: set engine: static")
        for _ in range(WARM_UP):
            self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # a watchdog of the collectives may ask the device something meanwhile, on a thread of its own
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._once()
        self._graph = graph

    def agrees(self) -> bool:
        """Make one step twice, as steps are made and eagerly, and compare the logits bit for bit; counted once.

        Raises:
            ValueError: no step was made, so that counts are not begun, or there is room for none.
        """
        if not 0 < self.made < self.steps:
            raise ValueError(f"a step is made twice between others: {self.made} of {self.steps} were made")
        before = [(part, part.clone()) for part in self._state()]
        self._once()
        eager = self.logits.clone()
        for part, old in before:
            part.copy_(old)
        self.step()
        return torch.equal(eager.view(torch.int32), self.logits.view(torch.int32))

    def _state(self) -> Iterator[Tensor]:
        """All that a step changes, but the row that it writes: made twice, it is written twice."""
        clock, ledger = self.clock, self.ledger
        yield from (clock.row, clock.seen, clock.hi_B, clock.context_BT, *clock.followed)
        yield from (self.token, self.logits, self._tokens_BN)
        yield from (part for part in (ledger.common, ledger.layers, ledger.most) if part is not None)
        for memory in self.session.binding.memories(self.cache):
            yield from changed(memory)

    def release(self) -> None:
        """Let the graph go; the session decodes as usual again. The ledger keeps the cache, of which it counts."""
        self._graph = None
        self.session.binding.clock = None


@contextmanager
def engine(session: Session, state: State, steps: int, pick: Pick = greedy, layers: Layers = "own") -> Iterator[Engine]:
    """An engine for a while.

    Raises:
        ValueError: the method's steps change shapes, or the model has a sliding window; at the first step, layers
            that are not Llama's are to be fused.
    """
    made = Engine(session, state, steps, pick, layers)
    try:
        yield made
    finally:
        made.release()
