"""Fix a cache's places for decode steps, so that a step can be captured once and replayed."""

from __future__ import annotations

from typing import Any

from .bind import Binding
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
