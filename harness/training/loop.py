"""The training loop: parts forward and backward, gradients summed over ranks, one step; noted, saved, taken up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from ...models.load import attending
from ..world import World
from .batches import Batches, Fed, ahead
from .compiled import Replayed, compiled_layers
from .kinds import Kind
from .optimiser import Optimiser
from .repeatable import repeatable
from .schedule import Schedule
from .sharding import add_up, here, put, whole
from .state import State

Tell = Callable[[State], None]
Sums = Callable[[Tensor, Tensor, Tensor], Tensor]
Order = Callable[[torch.device], AbstractContextManager[Any]]


@dataclass
class Loop:
    """One run.

    Attributes:
        run: tells this run from others.
        model: with weights in float32; under bfloat16 the products are rounded, the weights are not.
        clip: largest norm of the gradients; None: whatever it is.
        save: is given the state every `save_steps` steps or a few more, on every rank alike.
        points: of the curve, about.
        launch: of a part on a GPU: `graph` or `call`; `in_place`: gradients stay where they are, for a graph.
        order: under which kernels add up.
        curve: what was noted: step, tokens, loss (weighted), text_loss (of what was not planted), rate, tok_s.
    """

    run: str
    model: Any
    kind: Kind
    optimiser: Optimiser
    schedule: Schedule
    batches: Batches
    world: World
    dtype: str
    seed: int
    clip: float | None
    save_steps: int
    save: Tell
    points: int = 200
    launch: str = "graph"
    order: Order = repeatable
    in_place: bool = False
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def take_up(self, state: State) -> None:
        """Go on from what an earlier try left."""
        self.step, self.curve = state.step, list(state.curve)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                put(parameter, state.tensors[f"model.{name}"])
        self.optimiser.load(state.tensors)

    def state(self) -> State:
        """Where the run stands; a collective where the weights are cut."""
        own = {f"model.{name}": p for name, p in self.model.named_parameters()} | self.optimiser.state()
        return State(self.run, self.step, {name: whole(tensor) for name, tensor in own.items()}, self.curve)

    def all(self) -> None:
        """Every step that is left.

        Raises:
            ValueError: the loss is no number any more.
        """
        ranks = self.world.ranks
        parts = self.schedule.parts(self.step, ranks.rank, ranks.size)
        self.model.train()
        with self.order(self.device), attending(self.model, self.kind.attend), self._compiled() as loss:
            backward, noted = self._launched(partial(self._backward, loss)), _Noted(self)
            sums = torch.zeros(4, device=self.device)
            for fed in ahead(self.batches.make, parts, self.device):
                torch.manual_seed(hash((self.seed, fed.part.step, fed.part.number)) % 2**31)  # dropout, on any rank
                sums = sums + backward(fed)
                if fed.part.last:
                    self._change(sums)
                    noted.add(sums, fed.part.length)
                    sums = torch.zeros_like(sums)
        self.model.zero_grad()
        self.model.eval()

    @contextmanager
    def _compiled(self) -> Iterator[Callable[..., Tensor]]:
        """The loss of a batch, on a GPU of compiled parts where these are the same for all layers and batches."""
        if self.device.type != "cuda" or not self.kind.is_one_pass:
            yield self.losses
            return
        with compiled_layers(self.model):
            yield partial(self.losses, sums_of=torch.compile(weighted, dynamic=False))

    def _launched(self, work: Callable[[Fed], Tensor]) -> Callable[[Fed], Tensor]:
        """As one CUDA graph, where that is asked for and the passes are the same each time."""
        parameters = list(self.model.parameters())
        whole_weights = not any(isinstance(p, DTensor) for p in parameters)
        self.in_place = self.launch == "graph" and self.device.type == "cuda" and self.kind.is_fixed and whole_weights
        return Replayed(work, parameters) if self.in_place else work

    def losses(
        self, ids: Tensor, targets: Tensor, weights: Tensor, sums_of: Sums | None = None, **more: Tensor
    ) -> Tensor:
        """The three sums of `ids` [B, T] and their `targets`; see `weighted`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            logits = self.model(input_ids=ids, use_cache=False, **more).logits
        return (sums_of or weighted)(logits, targets, weights)

    def _backward(self, loss: Callable[..., Tensor], fed: Fed) -> Tensor:
        """Gradients of a part; its sums and its weight."""
        sums = torch.zeros(3, device=self.device)
        for found in self.kind.sums(loss, fed):
            found[0].backward()
            sums = sums + found.detach()
        return torch.cat([sums, fed.weights.sum()[None]])

    def _change(self, sums: Tensor) -> None:
        """One step of the optimiser, by the gradient of the mean over all ranks' weights."""
        parameters = list(self.model.parameters())
        add_up(parameters, self.world.ranks.size)
        if self.world.ranks.size > 1:
            torch.distributed.all_reduce(sums)
        scale = 1 / sums[3].clamp(min=1)
        grads = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_([here(grad) for grad in grads], scale)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimiser.step(self.schedule.factor(self.step))
        self.model.zero_grad(set_to_none=not self.in_place)
        self.step += 1


def weighted(logits_BTV: Tensor, targets_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Sum of weighted losses; sum and count of those that weigh 1."""
    nll = cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none")
    weight = weights_BT.flatten()
    plain = (weight == 1).to(nll.dtype)
    return torch.stack([(nll * weight).sum(), (nll.detach() * plain).sum(), plain.sum()])


class _Noted:
    """Sums since the last point of the curve: the device is asked for them there alone."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.every = loop, max(1, loop.schedule.steps // loop.points)
        self._begin()

    def _begin(self) -> None:
        self.sums, self.steps, self.began = torch.zeros(4, device=self.loop.device), 0, time.perf_counter()

    def add(self, sums: Tensor, length: int) -> None:
        """After a step: note, and save, when it is time."""
        loop = self.loop
        self.sums, self.steps = self.sums + sums, self.steps + 1
        done = loop.step == loop.schedule.steps
        if loop.step % self.every and not done:
            return
        self._note(length)
        points = math.ceil(loop.save_steps / self.every)  # at a point alone: no sum is under way that would be lost
        if loop.step // self.every % points == 0 or done:
            loop.save(loop.state())
        self._begin()

    def _note(self, length: int) -> None:
        loop, (weighted, plain, count, weight) = self.loop, self.sums.tolist()
        if weighted != weighted or weighted == float("inf"):  # noqa: PLR0124 - NaN is what differs from itself
            raise ValueError(f"the loss is no number at step {loop.step}: lower the rates")
        seconds = time.perf_counter() - self.began
        tokens = loop.schedule.step_tokens
        loop.curve.append(
            {
                "step": loop.step,
                "tokens": loop.step * tokens,
                "length": length,
                "loss": weighted / max(weight, 1.0),
                "text_loss": plain / max(count, 1.0),
                "rate": loop.schedule.factor(loop.step - 1),
                "tok_s": self.steps * tokens / seconds,
            }
        )
