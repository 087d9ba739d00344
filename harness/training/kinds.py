"""Kinds of attention in training: standard, landmark, and Transformer-XL's recurrence.

Shapes: B rows, H query heads, G key/value heads, T tokens of a row, C tokens of the cache, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.landmark_attention.autograd import landmark_sdpa
from ...models.landmark import Marks, grouped_attention
from .batches import Fed

Loss = Callable[..., Tensor]


class Kind(Protocol):
    """How rows are attended, and in how many passes a batch is gone through."""

    @property
    def is_fixed(self) -> bool:
        """Whether batches of a shape go through the same kernels each time, without dice, as a CUDA graph does."""

    @property
    def is_one_pass(self) -> bool:
        """Whether a layer, too, does the same each time: it can be compiled."""

    def attend(
        self, module: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask: None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """What the model calls in place of its own attention."""

    def sums(self, loss: Loss, fed: Fed) -> Iterator[Tensor]:
        """Sums over a batch, a pass at a time; each may be differentiated before the next is asked for."""


@dataclass(frozen=True)
class Standard:
    """Causal attention."""

    is_fixed: ClassVar[bool] = True
    is_one_pass: ClassVar[bool] = True

    def attend(
        self, module: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask: None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Through torch's fastest kernel."""
        del module, mask
        out = scaled_dot_product_attention(
            q_BHTD, k_BGTD, v_BGTD, is_causal=True, scale=kwargs["scaling"], enable_gqa=True
        )
        return out.transpose(1, 2), None

    def sums(self, loss: Loss, fed: Fed) -> Iterator[Tensor]:
        """One pass."""
        yield loss(fed.ids, fed.targets, fed.weights)


@dataclass(frozen=True)
class WithLandmarks:
    """Grouped softmax over the blocks that landmarks close (arXiv 2305.16300)."""

    dropout: float = 0.0
    block: int | None = None

    @property
    def is_fixed(self) -> bool:
        """Without dropout."""
        return not self.dropout

    @property
    def is_one_pass(self) -> bool:
        """Without dropout."""
        return not self.dropout

    def attend(
        self, module: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask: None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """`landmarks` and `controlled` come from what the model was called with.

        On a GPU, blocks of equal length (`block`: tokens before each landmark) go through the fused kernel.
        """
        del mask
        if self.block is not None and q_BHTD.is_cuda:
            # rotated queries and keys are float32 also under autocast, which knows torch's own kernels alone
            q, k = q_BHTD.to(v_BGTD.dtype), k_BGTD.to(v_BGTD.dtype)
            out = landmark_sdpa(q, k, v_BGTD, self.block + 1, kwargs["scaling"])
            return out.transpose(1, 2), None
        marks = Marks(kwargs["landmarks"], kwargs.get("controlled"))
        drop = self.dropout if module.training else 0.0
        return grouped_attention(q_BHTD, k_BGTD, v_BGTD, marks, kwargs["scaling"], drop).transpose(1, 2), None

    def sums(self, loss: Loss, fed: Fed) -> Iterator[Tensor]:
        """One pass."""
        more = {"landmarks": fed.landmarks, "controlled": fed.controlled, "position_ids": fed.positions}
        yield loss(fed.ids, fed.targets, fed.weights, **{k: v for k, v in more.items() if v is not None})


@dataclass(frozen=True)
class Recurrent:
    """Transformer-XL (arXiv 1901.02860): a row is read window by window; the window before is attended, not trained.

    Positions run on over the row, so that keys that were kept stand where they stood: that is the relative encoding
    which rotary embeddings give by themselves.
    """

    is_fixed: ClassVar[bool] = True
    is_one_pass: ClassVar[bool] = False
    window: int
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    before: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(
        self, module: Any, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask: None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Over the cache and the window."""
        del mask
        layer = module.layer_idx
        self.kept[layer] = (k_BGTD.detach(), v_BGTD.detach())
        old_k, old_v = self._cached(layer, k_BGTD)
        k, v = torch.cat([old_k, k_BGTD], 2), torch.cat([old_v, v_BGTD], 2)
        # under a mask torch has no fused kernel for groups, but one for heads
        k, v = (one.repeat_interleave(q_BHTD.shape[1] // k_BGTD.shape[1], 1) for one in (k, v))
        rows, held = q_BHTD.shape[2], k.shape[2]
        where = torch.arange(held, device=k.device)
        visible = where <= where[held - rows :, None]
        out = scaled_dot_product_attention(q_BHTD, k, v, attn_mask=visible, scale=kwargs["scaling"])
        return out.transpose(1, 2), None

    def _cached(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        nothing = like[:, :, :0].detach()
        return self.before.get(layer, (nothing, nothing))

    def sums(self, loss: Loss, fed: Fed) -> Iterator[Tensor]:
        """A pass for each window of the row."""
        self.before.clear()
        for start in range(0, fed.ids.shape[1], self.window):
            part = slice(start, start + self.window)
            positions = torch.arange(start, start + fed.ids[:, part].shape[1], device=fed.ids.device)[None]
            yield loss(fed.ids[:, part], fed.targets[:, part], fed.weights[:, part], position_ids=positions)
            self.before.update(self.kept)
            self.kept.clear()
        self.before.clear()
