"""One training cell from its model and arguments to its artifact."""

from __future__ import annotations

import copy
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from ...models.landmark import Landmarked, resized
from ...models.load import artifact, tokenizer_json
from ..lm import Session
from ..task import Outcome
from .batches import Batches
from .flops import utilisation
from .heldout import Heldout
from .kinds import Kind, Recurrent, Standard, WithLandmarks
from .landmarks import Landmarks
from .loop import Loop, Order
from .optimiser import make_optimiser
from .plants import Plants
from .prepare import EXTRA, Text
from .repeatable import repeatable
from .schedule import Schedule
from .sharding import shard_model, whole
from .shards import Shards
from .state import State
from .vocabulary import with_landmarks

if TYPE_CHECKING:
    from ..tasks.train import Train

ORDERS: dict[str, Order] = {"ordered": repeatable, "free": nullcontext}


class Training:
    """What a cell of the task `train` does, in order; each part is made once."""

    def __init__(self, task: Train, session: Session) -> None:
        assert session.work is not None
        self.task, self.session, self.work = task, session, session.work
        self.world, self.cell = session.lm.world, session.cell
        self.is_new = Path(self.cell.model.source).suffix == ".json"

    @torch.enable_grad()
    def outcome(self) -> Outcome:
        """Train and measure."""
        task, began = self.task, time.perf_counter()
        loop = self._loop()
        ready_s = time.perf_counter() - began  # nearly all of it the text, where it was not encoded before
        heldout = self._heldout(loop)  # before the first step: what is wrong with it is not to be told after hours
        state = State.read(self.work, self.cell.key)
        if state is not None:
            loop.take_up(state)
        loop.all()
        metrics = {"ready_s": ready_s, **self._scored(heldout, loop)}
        metrics |= {"tokens": loop.schedule.steps * task.step_tokens, "steps": loop.schedule.steps}
        metrics |= {"loss": loop.curve[-1]["loss"], **self._speed(loop)}
        return Outcome(metrics, loop.curve, artifact=self._artifact(loop, metrics))

    def _heldout(self, loop: Loop) -> dict[int, Heldout]:
        """Windows of each length."""
        task, marks = self.task, self._plain_landmarks()
        lengths = task.heldout_lengths or task.lengths[-1:]
        return {n: Heldout.of(task.heldout, loop.batches, n, task.heldout_windows, marks) for n in lengths}

    def _scored(self, heldout: dict[int, Heldout], loop: Loop) -> dict[str, float]:
        """Perplexity at the first length, and, where there are several, at each."""
        found = {length: windows.perplexity(loop) for length, windows in heldout.items()}
        first = next(iter(found))
        each = {f"heldout_perplexity_{length}": value for length, value in found.items()} if len(found) > 1 else {}
        tokens = sum(len(windows.windows) * length for length, windows in heldout.items())
        return {"heldout_perplexity": found[first], **each, "heldout_tokens": tokens}

    @cached_property
    def shards(self) -> Shards:
        """The text under the model's vocabulary, or, for a new model, under one of its own."""
        # beside the folders of cells, because cells with the same text and vocabulary share it
        text = Text(self.task.corpus, self.cell.task.digest, self.work.parents[1] / "tokens")
        if not self.is_new:
            return text.with_tokenizer(self.session.lm.tokenizer, self.world)
        extra = EXTRA if self.task.attention == "landmark" else 0
        return text.with_new_vocabulary(self.session.lm.model.config.vocab_size - extra, self.world)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer when it is trained."""
        made = self.shards.tokenizer if self.is_new else Tokenizer.from_str(tokenizer_json(self.session.lm.tokenizer))
        return Tokenizer.from_str(made.to_str())

    @cached_property
    def landmarks(self) -> Landmarks | None:
        """How landmarks are inserted; None where there are none."""
        task = self.task
        if task.attention != "landmark":
            return None
        token, control = with_landmarks(self.tokenizer)
        return Landmarks(token, control, task.block, task.places, task.jump, task.control)

    def _plain_landmarks(self) -> Landmarks | None:
        """For measuring: at the ends of equal blocks, without jumps, all under the control token if there is one."""
        own = self.landmarks
        return own and replace(own, places="fixed", jump=0, controlled=float(own.controlled > 0))

    @cached_property
    def model(self) -> Any:
        """Weights in float32: random ones by the cell's seed, or those of the checkpoint, with rows for landmarks."""
        torch.manual_seed(self.cell.seed)
        given = self.session.lm.model
        model = _fresh(given)
        if not self.is_new:
            model.load_state_dict(given.state_dict())
        if self.landmarks is not None:
            resized(model, self.tokenizer.get_vocab_size())
            made = Landmarked(self.landmarks.token, self.landmarks.control, self.task.block, max(self.task.lengths))
            made.note(model.config, gated=self.task.control > 0)
        if self.task.weights == "sharded":
            shard_model(model, self.cell.device)
        return model

    def _loop(self) -> Loop:
        task, shards = self.task, self.shards
        rates = (task.warmup, task.decay, task.floor)
        schedule = Schedule.of(
            task.lengths, task.shares, task.planted, task.tokens, task.step_tokens, task.part_tokens, rates
        )
        batches = Batches(shards, self.cell.seed, Plants.of(shards.tokenizer, task.mix, task.answer), self.landmarks)
        optimiser = make_optimiser(self.model, task.optimiser, task.rate, task.matrix_rate, task.weight_decay)
        return Loop(
            run=self.cell.key,
            model=self.model,
            kind=self._kind(),
            optimiser=optimiser,
            schedule=schedule,
            batches=batches,
            world=self.world,
            dtype=self.cell.dtype,
            seed=self.cell.seed,
            clip=task.clip,
            save_steps=task.save_steps,
            save=self._save,
            points=task.points,
            launch=task.launch,
            order=ORDERS[task.sums],
        )

    def _kind(self) -> Kind:
        task = self.task
        eager = task.kernel == "eager" or task.places == "random" or task.control or task.group_dropout
        kinds: dict[str, Kind] = {
            "standard": Standard(),
            "landmark": WithLandmarks(task.group_dropout, None if eager else task.block),
            "recurrent": Recurrent(task.window),
        }
        return kinds[task.attention]

    def _save(self, state: State) -> None:
        if self.world.ranks.rank == 0:
            state.write(self.work)

    def _speed(self, loop: Loop) -> dict[str, float]:
        """Median tokens a second of each length's points but the first, in which kernels are compiled."""
        found: dict[str, float] = {}
        for length in dict.fromkeys(self.task.lengths):
            rates = [point["tok_s"] for point in loop.curve if point["length"] == length]
            rate = statistics.median(rates[1:] or rates)
            found[f"tok_s_{length}"] = rate
            share = utilisation(loop.model, length, rate, self.world.ranks.size)
            found |= {} if share is None else {f"mfu_{length}": share}
        return found

    def _artifact(self, loop: Loop, metrics: dict[str, float]) -> bytes:
        dtype = getattr(torch, self.cell.dtype)
        weights = {name: whole(p).detach().to(dtype) for name, p in loop.model.named_parameters()}
        cell = self.cell.to_json()
        model = cell["model"]
        about = {"task": cell["task"], "model": model["name"], "model_digest": model["digest"], "seed": self.cell.seed}
        card = {
            **about,
            "key": self.cell.key,
            "ranks": self.cell.ranks,
            "dtype": self.cell.dtype,
            "metrics": metrics,
            "curve": loop.curve,
        }
        config = loop.model.config
        config.max_position_embeddings = max(config.max_position_embeddings, *self.task.lengths)
        return artifact(loop.model, weights, self.tokenizer.to_str(), card)


def _fresh(model: Any) -> Any:
    """Such a model with random weights, in float32: the one that was loaded is for the next cells too, and is bound."""
    made = type(model)(copy.deepcopy(model.config)).float()
    return made.to(next(model.parameters()).device)
