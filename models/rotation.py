"""Keys turned by a model's own rotary embedding, whatever its kind.

Shapes: B batch, n heads, T rows, D head dimension.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

RESCALED = ("dynamic", "longrope")  # their frequencies change with length: turning a key again is not a rotation


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
        if self._embedding is None or self._apply is None:
            raise ValueError("this model has no rotary embedding that a method could turn keys with")
        if getattr(self._embedding, "rope_type", "default") in RESCALED:
            raise ValueError(f"rotary embeddings of type {self._embedding.rope_type} cannot be turned after the fact")
        cos, sin = self._embedding(x_BnTD.float(), by_BT)
        size = self._embedding.attention_scaling  # belongs to the first rotation only
        return self._apply(x_BnTD.float(), x_BnTD[:, :1].float(), cos / size, sin / size)[0].to(x_BnTD.dtype)
