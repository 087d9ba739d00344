"""The state of rows that were dropped: sums over their features, of one size for any number of them.

A layer holds for each text and key/value head, in fp32: `sums` and `norm`, the sums of phi(k) v and of phi(k) over
rows, [F, D] and [F]; `scale`, the logarithm of the factor that both lack, so that no feature overflows; and for maps
around a centre `anchor` and `offset` [D] and `count`, whose anchor + offset / count is the mean of the keys dropped.
They lie in `Memory.extra`, and are charged there.

Shapes: B batch, G key/value heads, H query heads, J = H / G, T query rows, K rows dropped, D head dimension, F
features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.linear_decode import OP as LINEAR_DECODE
from ..kernels.linear_prefill import OP as LINEAR_PREFILL
from ..kernels.linear_prefill.eager import relative
from .call import Call
from .feature_map import Centre, FeatureMap, Features, Weights
from .memory import Memory

AT_ONCE = 2**21  # features of a head that are held at one time
PARTS = "residual."
SUMS = ("sums", "norm", "scale")


class Dropped(NamedTuple):
    """Rows that are dropped.

    Attributes:
        keys: [B, G, K, D] fp32, multiplied by the square root of the factor of q . k.
        values: [B, G, K, D].
        there: [B, G, K] which of them are meant.
    """

    keys: Tensor
    values: Tensor
    there: Tensor

    def rows(self, some: slice) -> Dropped:
        """Some of them."""
        return Dropped(*(part[:, :, some] for part in self))


@dataclass(frozen=True)
class Share:
    """What some rows, or the state, give query rows.

    Attributes:
        out: [B, H, T, D] their mean value.
        log: [B, H, T] the logarithm of the sum of their weights; of nothing where there are none.
    """

    out: Tensor
    log: Tensor

    def merge(self, exact: Share) -> Tensor:
        """With exact attention: (e^a x + e^b y) / (e^a + e^b)."""
        weight = torch.sigmoid(self.log - exact.log).masked_fill(self.log == -torch.inf, 0.0)[..., None]
        return exact.out + weight * (self.out - exact.out)


@dataclass(frozen=True)
class State:
    """The state in a layer's memory, under one map."""

    memory: Memory
    phi: FeatureMap
    centred: bool

    def begin(self, like_BGTD: Tensor) -> None:
        """Lay out a state of nothing, once."""
        if PARTS + "sums" in self.memory.extra:
            return
        batch, groups, _, size = like_BGTD.shape
        zeros = like_BGTD.new_zeros(batch, groups, self.phi.features(size), size, dtype=torch.float32)
        self._put("sums", zeros)
        self._put("norm", torch.zeros_like(zeros[..., 0]))
        self._put("scale", torch.full_like(zeros[..., 0, 0], -torch.inf))
        if self.centred:
            self._put("anchor", zeros.new_zeros(batch, groups, size))
            self._put("offset", zeros.new_zeros(batch, groups, size))
            self._put("count", zeros.new_zeros(batch, groups))

    def _put(self, name: str, part: Tensor) -> None:
        self.memory.extra[PARTS + name] = part

    def _get(self, name: str) -> Tensor:
        return self.memory.extra[PARTS + name]

    @property
    def weights(self) -> Weights:
        """The map's, which lie among the memory's constants."""
        return unmarked(self.memory.constants)

    def read_bytes(self, texts: int) -> float:
        """Bytes that one query row reads of the states of all real heads; weights are read once for all texts."""
        share = self.memory.site.live / max(1, len(self.memory.site.kv_heads))
        own = sum(part.nbytes for name, part in self.memory.extra.items() if name.startswith(PARTS))
        return (own + sum(part.nbytes for part in self.weights.values())) * share / texts

    def absorb(self, dropped: Dropped) -> None:
        """Add rows for good."""
        self._settle_anchor(dropped)
        for rows in self._pieces(dropped.keys):
            some = dropped.rows(rows)
            found, old = self._features(some), self._get("scale")
            new = torch.maximum(old, found.log.amax(-1))
            entering = found.value * relative(found.log, new[..., None])[..., None]
            decay = relative(old, new)[..., None]
            self._put("sums", self._get("sums") * decay[..., None] + entering.mT @ some.values.float())
            self._put("norm", self._get("norm") * decay + entering.sum(2))
            self._put("scale", new)
            self._move_centre(some)

    def pass_by(self, q_BHTD: Tensor, dropped: Dropped, exact: Share) -> Tensor:
        """Add one row with each query row (scaled, fp32), which hears it and all before it; K = T.

        Returns:
            The state joined with exact attention, [B, H, T, D] in the dtype of that.
        """
        self._settle_anchor(dropped)
        parts = []
        for rows in self._pieces(dropped.keys):
            some, q = dropped.rows(rows), q_BHTD[:, :, rows]
            found, asked = self._features(some), self._asked(q, self._centres(some, q.shape[1]))
            asked_of = (asked.value.reshape(*q.shape[:3], -1), asked.log.reshape(q.shape[:3]))
            state = (self._get(name) for name in SUMS)
            entering = (found.value, some.values, found.log)
            joined = LINEAR_PREFILL(*asked_of, *entering, *state, exact.out[:, :, rows], exact.log[:, :, rows])
            for name, part in zip(SUMS, joined[1:], strict=True):
                self._put(name, part)
            self._move_centre(some)
            parts.append(joined.out_BHTD)
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]

    def step(self, q_BHTD: Tensor, dropped: Dropped, exact: Share) -> Tensor:
        """Add one row for good, and join the state with exact attention of one query row; [B, H, 1, D] fp32."""
        if self.memory.clock is None:  # once pinned the anchor stays: results do not depend on it
            self._settle_anchor(dropped)
        found, (batch, heads) = self._features(dropped), q_BHTD.shape[:2]
        self._move_centre(dropped)
        asked = self._asked(q_BHTD, self._centre(heads))
        state = (self._get(name) for name in SUMS)
        asked_of = (asked.value.reshape(batch, heads, -1), asked.log.reshape(batch, heads))
        entering = (found.value[:, :, 0], found.log[:, :, 0], dropped.values[:, :, 0])
        age = "new" if self.memory.clock is None else "settled"  # pinned: a step ago
        joined = LINEAR_DECODE(*asked_of, *entering, *state, exact.out[:, :, 0], exact.log[:, :, 0], age)
        for name, part in zip(SUMS, joined[1:], strict=True):
            self._put(name, part)
        out: Tensor = joined.out_BHD[:, :, None]
        return out

    def read(self, q_BHTD: Tensor) -> Share:
        """What the state gives query rows (scaled, fp32)."""
        batch, heads, rows, size = q_BHTD.shape
        asked = self._asked(q_BHTD, self._centre(heads * rows))
        sums, norm, scale = (self._get(name) for name in SUMS)
        total = (asked.value @ norm[..., None])[..., 0]
        safe = total > 0  # the diagonal Taylor map may be negative: then the exact rows stand alone
        out = (asked.value @ sums) / torch.where(safe, total, 1.0)[..., None]
        log = torch.where(safe, torch.where(safe, total, 1.0).log() + asked.log + scale[..., None], -torch.inf)
        return Share(out.view(batch, heads, rows, size), log.view(batch, heads, rows))

    def _pieces(self, keys_BGKD: Tensor) -> Iterator[slice]:
        """Rows whose features are held at one time."""
        size = max(64, min(4096, AT_ONCE // self.phi.features(keys_BGKD.shape[3])))
        for first in range(0, keys_BGKD.shape[2], size):
            yield slice(first, first + size)

    def _settle_anchor(self, dropped: Dropped) -> None:
        """Put the anchor at the mean of the first rows that leave; where it lies only rounding depends on."""
        if not self.centred or dropped.keys.shape[2] == 0:
            return
        there = dropped.there[..., None]
        mean = (dropped.keys * there).sum(2) / there.sum(2).clamp(min=1)
        self._put("anchor", torch.where(self._get("count")[..., None] == 0, mean, self._get("anchor")))

    def _apart(self, dropped: Dropped) -> Tensor:
        """From the anchor, [B, G, K, D]."""
        apart = dropped.keys - self._get("anchor")[:, :, None]
        return apart if self.memory.clock is not None else apart * dropped.there[..., None]

    def _move_centre(self, dropped: Dropped) -> None:
        """Let the mean take up rows."""
        if self.centred:
            self._put("offset", self._get("offset") + self._apart(dropped).sum(2))
            self._put("count", self._get("count") + dropped.there.sum(-1))

    def _features(self, dropped: Dropped) -> Features:
        """Of keys; rows that are not meant get the logarithm of nothing."""
        found = self.phi.keys(self._apart(dropped) if self.centred else dropped.keys, self.weights)
        if self.memory.clock is not None:  # a full cache always lets a row go
            return found
        return Features(found.value, found.log.masked_fill(~dropped.there, -torch.inf))

    def _asked(self, q_BHTD: Tensor, centre: Centre | None) -> Features:
        """Of queries, those of a group one after the other: [B, G, J T, F] and [B, G, J T]."""
        flat = q_BHTD.reshape(q_BHTD.shape[0], self._get("scale").shape[1], -1, q_BHTD.shape[3])
        return self.phi.queries(flat, self.weights, centre)

    def _centre(self, rows: int) -> Centre | None:
        """The mean of what has left, for so many query rows of all heads."""
        if not self.centred:
            return None
        mean = (self._get("offset") / self._get("count").clamp(min=1)[..., None])[:, :, None]
        return Centre(self._get("anchor")[:, :, None], mean.expand(-1, -1, rows // mean.shape[1], -1))

    def _centres(self, dropped: Dropped, heads: int) -> Centre | None:
        """The mean of what had left when each query row came; for the J query heads of a group alike."""
        if not self.centred:
            return None
        count = self._get("count")[:, :, None] + dropped.there.cumsum(-1)
        offset = self._get("offset")[:, :, None] + self._apart(dropped).cumsum(2)
        mean = offset / count.clamp(min=1)[..., None]
        return Centre(self._get("anchor")[:, :, None], mean.repeat(1, 1, heads // mean.shape[1], 1))


def refuse_windows(call: Call) -> None:
    """Refuse models whose rows stop seeing tokens.

    Raises:
        ValueError: one does.
    """
    if call.visible is None or call.causal:
        return
    context = call.context_BT
    if bool(((call.visible.sum(-1) < context) & (context > 0)).any()):
        raise ValueError("this model forgets tokens by a sliding window of its own: a state cannot forget them")


def marked(weights: Weights) -> Mapping[str, Tensor]:
    """A map's weights as a layer's constants are named."""
    return {PARTS + name: part for name, part in weights.items()}


def unmarked(constants: Mapping[str, Tensor]) -> Weights:
    """The same, back."""
    return {name.removeprefix(PARTS): part for name, part in constants.items() if name.startswith(PARTS)}
