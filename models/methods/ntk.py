"""NTK-Attention: a trained state in place of a prefix.

Shapes: B batch, G key/value heads, H query heads, N sets of heads (G or H), T query rows, S rows held, D head
dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from ...kernels.held_prefill import OP as HELD_PREFILL
from ...kernels.marked_decode import OP as MARKED_DECODE
from ...results.fields import Needs, Within
from .. import attend
from ..call import Call
from ..feature_map import load_map
from ..ledger import Ledger
from ..memory import Memory, Site
from ..method import Method
from ..residual_state import Share, refuse_windows

PARTS = ("values", "norms", "scale")


@dataclass(frozen=True)
class Ntk(Method):
    """The first rows of a text are dropped, and a trained matrix Z and vector k stand for them in every head.

    NTK-Attention (arXiv 2406.14036): (sum of exp(s) v + phi(q) Z) / (sum of exp(s) + phi(q) |k|) with phi(x) =
    elu(x / D^(1/4)) + 1 and D features, merged by logarithms. Z and k are trained by the error of attention's output
    (task ntk), and stand for the first `prefix` rows of any text as the calibration had them: a prefix that all texts
    share, or what the rows of such a place have in common. Rows of the prefix itself attend each other; once a text is
    longer, they leave.

    Keeps all later rows, and for each head D (D + 1) + 1 numbers in fp32, the last of them the logarithm of a factor of
    both Z and k; a step reads them once for all texts.

    Arguments: `prefix` rows replaced; `heads: kv` has a state for each key/value head, `query` one for each query head;
    `state` the calibration.
    """

    prefix: Annotated[int, Within(1)] = 64
    heads: Literal["kv", "query"] = "kv"
    state: Annotated[Mapping[str, Any], Needs("ntk", same=("prefix", "heads"))] = field(default_factory=dict)
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def tables(self, site: Site) -> Mapping[str, Tensor]:
        """This rank's Z, [N, D, D], k, [N, D], and the logarithm of their factor, [N, 1]; zero heads get zeros.

        Raises:
            ValueError: the artifact is of another model.
        """
        with safe_open(site.artifacts["state"], "pt") as file:
            found = {name: file.get_tensor(f"layer.{site.layer}.{name}") for name in PARTS}
        share, rest = divmod(len(found["norms"]), site.kv_heads_real)
        if rest or found["values"].shape[1:] != (site.head_dim, site.head_dim):
            raise ValueError("the state is of another model: train it on this one")
        return {name: torch.cat([_heads(part, h, share) for h in site.kv_heads]) for name, part in found.items()}

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """A first prompt is dense; in a later one the state speaks for rows that are gone."""
        if memory.columns is None:
            return super().attend_dense(q_BHTD, memory, call, ledger)
        return self.attend(q_BHTD, memory, call, ledger)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Attend all rows after the prefix, and the state; rows of the prefix attend each other."""
        if call.clock is not None:
            return self._step(q_BHTD, memory, call, ledger)
        refuse_windows(call)
        place_BT = call.numbers_T - call.first[:, None]
        beyond = place_BT >= self.prefix
        is_text = memory.numbers_BS(len(call.first)) >= call.first[:, None]
        later = memory.numbers_BS(len(call.first)) >= (call.first + self.prefix)[:, None]
        hidden = beyond * (is_text & ~later).sum(-1, keepdim=True)
        read = (attend.visible_count_BNT(memory, call) - hidden[:, None]).expand(-1, memory.keys.view.shape[1], -1)
        if ledger.watch is not None:
            keep = attend.visible_BTS(memory, call) & (later[:, None] | ~beyond[..., None])
            ledger.chosen(memory, call, q_BHTD, keep[:, None])
        ledger.count(memory, call, read, beyond * self._read_bytes(memory, len(place_BT)))
        leave = torch.where(later, call.new, (~beyond).sum(-1, keepdim=True)) * is_text
        return self._merged(q_BHTD, memory, call, leave, beyond).masked_fill(place_BT[:, None, :, None] < 0, 0.0)

    def room(self, memory: Memory, steps: int) -> int:
        """A row a step, once every text has lost its prefix."""
        assert memory.first is not None
        numbers, first = memory.numbers_BS(len(memory.first)), memory.first[:, None]
        if bool(((numbers >= first) & (numbers < first + self.prefix)).any()):
            raise ValueError(f"ntk is captured without its prefix: prompts must be longer than prefix = {self.prefix}")
        return steps

    def _step(self, q_BH1D: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """A row of texts that have lost their prefix, at fixed places."""
        groups, texts = memory.keys.view.shape[1], len(call.first)
        read = call.once(("ntk", groups), lambda: (call.context_BT - self.prefix)[:, None].expand(-1, groups, -1))
        ledger.count(memory, call, read, self._read_bytes(memory, texts))
        hidden_B = call.once("ntk", lambda: (memory.numbers_BS(texts) < call.first[:, None]).sum(-1).int())
        exact = _attend_from(q_BH1D, memory, call, hidden_B)
        return from_state(call.root_scaled(q_BH1D), memory.constants).merge(exact).to(q_BH1D.dtype)

    @staticmethod
    def _merged(q_BHTD: Tensor, memory: Memory, call: Call, leave_BS: Tensor, beyond_BT: Tensor) -> Tensor:
        """Exact attention over rows that leave, and the state where the prefix has left."""
        if call.new == 1:
            exact = _attend_from(q_BHTD, memory, call, (leave_BS == 0).sum(-1).int())
        else:
            leave_BGS = leave_BS[:, None].expand(-1, memory.keys.view.shape[1], -1).int()
            exact = Share(*HELD_PREFILL(q_BHTD, memory.keys.view, memory.values.view, leave_BGS, call.scale))
        share = from_state(call.root_scaled(q_BHTD), memory.constants)
        heard = Share(share.out, share.log.masked_fill(~beyond_BT[:, None], -torch.inf))
        return heard.merge(exact).to(q_BHTD.dtype)

    @staticmethod
    def _read_bytes(memory: Memory, texts: int) -> float:
        """Bytes of the states of all real heads, for each text."""
        own = sum(part.nbytes for part in memory.constants.values())
        return own * memory.site.live / max(1, len(memory.site.kv_heads)) / texts

    def kept(self, memory: Memory, call: Call, before_BN: Tensor, after_BN: Tensor) -> Tensor:
        """A text's rows until it loses its prefix, which no text does while another would be left with nothing."""
        del memory, after_BN
        text_BT = call.context_BT
        gone_B1 = before_BN < (call.seen - call.new - call.first).clamp(min=0)[:, None]
        now_BT = (text_BT >= self.prefix) & (text_BT != self.prefix).all(0)
        return (text_BT - self.prefix * (gone_B1 | now_BT.int().cummax(1).values.bool()))[:, None]

    def settle(self, memory: Memory, call: Call) -> None:
        """Drop the prefix of each text that is longer."""
        if memory.clock is not None or memory.keys.view.shape[2] <= memory.seen - self.prefix:  # every text has lost it
            return
        numbers = memory.numbers_BS(len(call.first))
        place = numbers - call.first[:, None]
        longer = (memory.seen - call.first) >= self.prefix
        keep = (place >= self.prefix) | ((place >= 0) & ~longer[:, None])
        if bool(longer.any()) and bool((keep.sum(-1) > 0).all()):
            memory.keep(attend.rows_of(keep[:, None]))


def _attend_from(q_BH1D: Tensor, memory: Memory, call: Call, first_B: Tensor) -> Share:
    """Attend one row to what is held from these rows on."""
    last_B, (batch, groups) = torch.zeros_like(first_B) + memory.keys.count, memory.keys.view.shape[:2]
    caches, none = (memory.keys.view, memory.values.view), first_B.new_empty(batch, groups, 0, dtype=torch.float32)
    found = MARKED_DECODE(q_BH1D[:, :, 0], *caches, first_B, last_B, call.scale, none, 1.0, groups)
    return Share(found.out_BHD[:, :, None], found.log_BH[:, :, None])


def from_state(q_BHTD: Tensor, state: Mapping[str, Tensor]) -> Share:
    """What Z and |k| give query rows (fp32, multiplied by the square root of the factor of q . k)."""
    values_NDD, norms_ND, scale_N1 = (state[name] for name in PARTS)
    batch, heads, rows, size = q_BHTD.shape
    q = q_BHTD.reshape(batch, len(norms_ND), -1, size)
    phi = load_map("elu", None, 0).queries(q, {}, None).value
    norm = (phi @ norms_ND.abs()[..., None])[..., 0].clamp(min=torch.finfo(phi.dtype).tiny)
    out = (phi @ values_NDD) / norm[..., None]
    return Share(out.view(batch, heads, rows, size), (norm.log() + scale_N1).view(batch, heads, rows))


def _heads(part_N: Tensor, head: int, share: int) -> Tensor:
    """The sets of one key/value head, zeros for one that only pads."""
    own = part_N[head * share : (head + 1) * share]
    return own if len(own) else torch.zeros_like(part_N[:share])
