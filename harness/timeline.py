"""What a cache holds while its texts grow: read between steps, told when all of them are made."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .lm import Session

After = Literal["prefill", "decode"]


class Timeline:
    """Readings of one cache; a reading asks the device nothing, so that the host does not wait for it.

    Args:
        session: the model under a method.
        cache: of the texts under way, their prompt fed.
    """

    def __init__(self, session: Session, cache: Any) -> None:
        self._session, self._cache = session, cache
        self._read: list[tuple[After, Tensor, int | None]] = []

    def note(self, after: After) -> None:
        """Read what is held now: after the prompt, or after a step."""
        memories = self._session.binding.memories(self._cache)
        held = torch.stack([memory.held_bytes for memory in memories]).sum()
        tokens = torch.zeros_like(held) + memories[0].seen  # a copy: once pinned, `seen` counts on in its place
        device = self._session.device
        allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else None
        self._read.append((after, torch.stack([tokens, held]), allocated))

    def samples(self) -> list[dict[str, Any]]:
        """{"phase": "memory", "after", "tokens" of a text, "held_bytes", and on a GPU "allocated_bytes"} a reading.

        Bytes held are those of all texts, layers and ranks, as the ledger counts them; those that torch allocated are
        of this rank's GPU, weights included.
        """
        mine = [table.tolist() for _, table, _ in self._read]
        ranks = self._session.lm.world.gather([held for _, held in mine])
        totals = [round(sum(held)) for held in zip(*ranks, strict=True)]
        return [
            {"phase": "memory", "after": after, "tokens": round(tokens), "held_bytes": held}
            | ({} if allocated is None else {"allocated_bytes": allocated})
            for (after, _, allocated), (tokens, _), held in zip(self._read, mine, totals, strict=True)
        ]
