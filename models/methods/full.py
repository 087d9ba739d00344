"""Dense attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from .. import attend
from ..call import Call
from ..ledger import Ledger
from ..memory import Memory
from ..method import Method, count_dense


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Every row is kept and read: the baseline of accuracy and, through the fastest dense kernel, of time.

    `kernel: lacuna` (default) decodes through the op dense_decode, and attends many rows through PyTorch's
    scaled_dot_product_attention; `sdpa` attends every row through the latter, `flash` through its flash kernel alone,
    which is refused where PyTorch has none for these tensors, for padded texts and for models with a sliding window;
    `eager` multiplies matrices, with a softmax in fp32. All read the same rows.
    """

    kernel: Literal["lacuna", "eager", "sdpa", "flash"] = "lacuna"
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "direct"

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend all that is visible."""
        count_dense(memory, call, ledger)
        kernels = {"lacuna": attend.dense, "eager": eager, "sdpa": sdpa, "flash": flash}
        return kernels[self.kernel](q_BHTD, memory, call)

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The same, by the same kernel."""
        return Full.attend(self, q_BHTD, memory, call, ledger)

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step."""
        del memory
        return steps

    def expects_gaps(self) -> bool:
        """None."""
        return False


def eager(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """Two products and a softmax, some rows at a time."""
    visible, groups = attend.visible_BNTS(memory, call)[:, :, None], memory.keys.view.shape[1]
    q, parts = q_BHTD.unflatten(1, (groups, -1)), []
    for rows in attend.pieces(call):
        seen = visible[:, :, :, rows]
        scores = (q[:, :, :, rows] @ memory.keys.view[:, :, None].mT).float() * call.scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0.0)
        parts.append(weights.to(q.dtype) @ memory.values.view[:, :, None])
    return torch.cat(parts, 3).flatten(1, 2)


def sdpa(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """PyTorch's choice among its kernels."""
    if call.new == 1:
        return attend.masked(q_BHTD, memory, attend.visible_BNTS(memory, call), call)
    return attend.dense(q_BHTD, memory, call)


def flash(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """PyTorch's flash kernel, or nothing.

    Raises:
        ValueError: it is not there for these tensors, or cannot leave out what these texts must not see.
    """
    seen = attend.visible_BNTS(memory, call).sum(-1)[:, 0]
    if bool((seen != call.numbers_T + 1).any()):
        raise ValueError("full with kernel: flash attends all earlier tokens, padding too: set kernel: sdpa")
    k, v = memory.keys.view, memory.values.view
    mask = None if call.new == 1 else causal_lower_right(call.new, k.shape[2])
    try:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(q_BHTD, k, v, attn_mask=mask, scale=call.scale, enable_gqa=True)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        kind = f"{str(q_BHTD.dtype).removeprefix('torch.')} with heads of {q_BHTD.shape[3]} on {q_BHTD.device.type}"
        raise ValueError(f"full: PyTorch has no flash kernel for {kind}: set kernel: sdpa") from error
