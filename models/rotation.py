"""Keys turned by a model's own rotary embedding, whatever its kind.

Shapes: B batch, n heads, T rows, D head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

RESCALED = ("dynamic", "longrope")  # their frequencies change with length: turning a key again is not a rotation


@dataclass(frozen=True)
class Turn:
    """Turns rows by positions that are known: what depends on these alone is computed once."""

    cos_BTD: Tensor
    sin_BTD: Tensor
    apply: Callable[..., tuple[Tensor, Tensor]]

    def __call__(self, x_BnTD: Tensor) -> Tensor:
        """The rows, turned in float32."""
        x = x_BnTD.float()
        nothing = x[:, :0]  # in place of keys
        return self.apply(x, nothing, self.cos_BTD, self.sin_BTD)[0].to(x_BnTD.dtype)


class Turning(Protocol):
    """What turns rows by any number of positions; negative ones turn back."""

    def __call__(self, x_BnTD: Tensor, by_BT: Tensor, /) -> Tensor:
        """Turn rows by some positions."""

    def by(self, by_BT: Tensor, /) -> Callable[[Tensor], Tensor]:
        """The turn by some positions, for rows of several layers."""


class Rotation:
    """The model's own rotary embedding, as a turn by any number of positions (negative: back)."""

    def __init__(self, model: Any) -> None:
        base = model.base_model
        self._embedding = getattr(base, "rotary_emb", None)
        self._apply = getattr(sys.modules[type(base).__module__], "apply_rotary_pos_emb", None)

    def __call__(self, x_BnTD: Tensor, by_BT: Tensor) -> Tensor:
        """Turn rows by some positions; negative ones turn back.

        Raises:
            ValueError: the model has no rotary embedding, or one whose frequencies change with length.
        """
        return self.by(by_BT)(x_BnTD)

    def by(self, by_BT: Tensor) -> Turn:
        """The turn by some positions.

        Raises:
            ValueError: the model has no rotary embedding, or one whose frequencies change with length.
        """
        if self._embedding is None or self._apply is None:
            raise ValueError("this model has no rotary embedding that a method could turn keys with")
        if getattr(self._embedding, "rope_type", "default") in RESCALED:
            raise ValueError(f"rotary embeddings of type {self._embedding.rope_type} cannot be turned after the fact")
        cos, sin = self._embedding(by_BT.float(), by_BT)  # its first argument says dtype and device
        size = self._embedding.attention_scaling  # belongs to the first rotation only
        return Turn(cos, sin, self._apply) if size == 1 else Turn(cos / size, sin / size, self._apply)
