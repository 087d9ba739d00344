"""PCAAttn: attention from the leading principal components alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...kernels.dense_decode import OP as DENSE_DECODE
from ...results.fields import Needs, Share
from .. import attend
from ..call import Call
from ..ledger import Ledger
from ..memory import Memory, Site
from ..method import Method
from .loki import Loki

WHOLE = "whole"


@dataclass(frozen=True)
class PcaAttn(Method):
    """Every row is attended, with scores from the first d principal components of its key; no more of it is kept.

    The comparison of Loki's appendix E (arXiv 2406.02542), which loses far more than ranking by the same components.
    The key cache shrinks to d/D; values stay whole. Reads d components of every key, every value and the basis. Scores
    keep the factor 1/sqrt(D).

    A prompt that is to stay dense is attended with its whole keys, which are let go at its end; a second prompt of the
    same text meets keys that are already short. The authors' code shortens the prompt's rows too (`prefill: sparse`).

    Arguments: `d` leading components, a share of the head dimension or a count; `basis` the calibration (task pca).
    """

    d: Annotated[int | float, Share("the head dimension")] = 0.5
    basis: Annotated[Mapping[str, Any], Needs("pca")] = field(default_factory=dict)
    version: ClassVar[int] = 1
    shape: ClassVar[Literal["direct", "select", "evict"]] = "direct"

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step."""
        del memory
        return steps

    def expects_gaps(self) -> bool:
        """It reads something of every row."""
        return False

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """The leading part of this rank's basis, [G, D, d]."""
        return {"lead": Loki(d=self.d).constants(site)["lead"]}

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append the leading components; a first prompt's keys stay whole until it was attended."""
        whole = {WHOLE: k_BGTD} if memory.clock is None and memory.seen == 0 else {}
        memory.append(k_BGTD @ memory.constants["lead"], v_BGTD, whole)

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """With whole keys where they are still there."""
        if WHOLE not in memory.aux:
            return self.attend(q_BHTD, memory, call, ledger)
        ledger.count(memory, call, self._visible(memory, call), 0.0, memory.dense_row_bytes)
        return self._over(q_BHTD, memory.aux[WHOLE].view, memory, call)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Project the query and attend all that is visible."""
        basis, site = memory.constants["lead"], memory.site
        extra = basis.nbytes * site.live / max(1, len(site.kv_heads)) / q_BHTD.shape[0]
        ledger.count(memory, call, self._visible(memory, call), extra)
        q_BHTW = q_BHTD @ basis.repeat_interleave(q_BHTD.shape[1] // basis.shape[0], 0)
        return self._over(q_BHTW, memory.keys.view, memory, call)

    @staticmethod
    def _visible(memory: Memory, call: Call) -> Tensor:
        groups = memory.keys.view.shape[1]
        if call.clock is not None:
            return call.context_BT[:, None].expand(-1, groups, -1)
        return attend.visible_count_BNT(memory, call).expand(-1, groups, -1)

    @staticmethod
    def _over(q_BHTW: Tensor, k_BGSW: Tensor, memory: Memory, call: Call) -> Tensor:
        """One row through the op, which takes keys shorter than values; many through a mask."""
        if call.new == 1:
            lo, hi = attend.span(memory, call)
            return DENSE_DECODE(q_BHTW[:, :, 0], k_BGSW, memory.values.view, lo, hi, call.scale)[:, :, None]
        keep = attend.visible_BTS(memory, call)[:, None]
        empty = ~keep.any(-1, keepdim=True)
        v = memory.values.view
        out = scaled_dot_product_attention(q_BHTW, k_BGSW, v, attn_mask=keep | empty, scale=call.scale, enable_gqa=True)
        return out.masked_fill(empty, 0)

    def settle(self, memory: Memory, call: Call) -> None:
        """Let the whole keys go."""
        del call
        memory.aux.pop(WHOLE, None)
