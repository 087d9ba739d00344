"""Fix a cache's places for decode steps, so that a step can be captured once and replayed.

Shapes: B batch, N sets of rows held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from . import threshold
from .bind import Binding
from .memory import Memory
from .rows import Clock, Growth

ALIGNED_ROWS = 16


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
    clock = Clock(int(memories[0].seen), binding.first)
    rooms = [_rounded(memory, binding.method.room(memory, steps)) for memory in memories]
    for memory, room in zip(memories, rooms, strict=True):
        memory.pin(room, clock)
    cut = [memory for memory, room in zip(memories, rooms, strict=True) if room and memory.columns is not None]
    _follow(cut, clock)
    threshold.join(memories, binding.method.by_length)
    binding.clock = clock  # not where a method has refused
    return clock


def _rounded(memory: Memory, room: int) -> int:
    """Room for new rows, and a few more: rows of scores then begin aligned, whatever the length; 0 stays 0."""
    return room and room + -(int(memory.keys.count) + room) % ALIGNED_ROWS


def _follow(memories: Sequence[Memory], clock: Clock) -> None:
    """Note where the text of memories that only grow stands: each step adds a row behind it.

    What stands alike in several layers, as after one budget, is noted once.
    """
    if not memories:
        return
    begin = [_begin_BN(memory) for memory in memories]
    end = [lo_BN.new_full(lo_BN.shape, int(memory.keys.count)) for memory, lo_BN in zip(memories, begin, strict=True)]
    stands = [
        (lo_BN.shape, tuple(lo_BN.flatten().tolist()), int(memory.keys.count))
        for memory, lo_BN in zip(memories, begin, strict=True)
    ]
    alike = [stands.index(one) for one in stands]
    own = sorted(set(alike))
    rows = clock.follow([(end[i] - begin[i]).long() for i in own])
    grown = {
        i: Growth(begin[i].flatten(), hi_BN.flatten(), rows_BN)
        for i, hi_BN, rows_BN in zip(own, clock.follow([end[i] for i in own]), rows, strict=True)
    }
    for memory, i in zip(memories, alike, strict=True):
        memory.growth = grown[i]


def _begin_BN(memory: Memory) -> Tensor:
    """The row with which the text of each set begins; int32."""
    assert memory.columns is not None
    assert memory.first is not None
    before = memory.columns < memory.first[:, None, None]
    assert not bool((~before[..., :-1] & before[..., 1:]).any()), "a hole or padding lies behind text"
    return before.sum(-1).int()


def changed(memory: Memory) -> Iterator[Tensor]:
    """What a step changes in a pinned memory, but for what is the same written twice: its row, a page's box, sinks."""
    yield from memory.extra.values()
    yield from () if memory.columns is None else (memory.columns,)
    if "recent" in memory.given:  # rows are overwritten
        yield from (part.view for part in (memory.keys, memory.values, *memory.aux.values()))
