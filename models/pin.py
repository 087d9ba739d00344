"""Fix a cache's places for decode steps, so that a step can be captured once and replayed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .bind import Binding
from .memory import Memory
from .rows import Clock


def pin(binding: Binding, cache: Any, steps: int) -> Clock:
    """Fix a cache's places for so many decode steps of one token.

    The clock shows the last token seen: tick before each step. Padding is known from the prompt: the steps get no
    attention mask.

    Raises:
        ValueError: the method, or the model (a sliding window), decides on the host.
    """
    if getattr(binding.model.config.get_text_config(), "sliding_window", None):
        raise ValueError("models with a sliding window are not captured: their mask is made on the host")
    assert binding.first is not None
    memories = binding.memories(cache)
    binding.clock = Clock(int(memories[0].seen), binding.first)
    for memory in memories:
        memory.pin(binding.method.room(memory, steps), binding.clock)
    return binding.clock


def changed(memory: Memory) -> Iterator[Tensor]:
    """What a step changes in a pinned memory, but a row that it appends: made twice, that is written twice."""
    yield from memory.extra.values()
    yield from () if memory.columns is None else (memory.columns,)
    if "recent" in memory.given:  # rows are overwritten
        yield from (part.view for part in (memory.keys, memory.values, *memory.aux.values()))
