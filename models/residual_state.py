"""The state of rows that were dropped: sums over their features, of one size for any number of them.

A layer holds for each text and key/value head, in fp32: `sums`, the sum of phi(k) [v, 1] over rows, [F, D + 1];
`scale`, the logarithm of the factor that the sums lack, so that no feature overflows; and for maps around a centre
`anchor` and `offset` [D] and `count`, whose anchor + offset / count is the mean of the keys dropped. They lie in
`Memory.extra`, and are charged there.

Shapes: B batch, G key/value heads, H query heads, J = H / G, T query rows, K rows dropped meanwhile, D head dimension,
F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import attend
from .feature_map import Centre, FeatureMap, Features, Weights
from .memory import Call, Memory

AT_ONCE = 256  # rows whose features are held at one time
PARTS = "residual."


@dataclass(frozen=True)
class Dropped:
    """Rows that leave while T rows are attended.

    Attributes:
        keys: [B, G, K, D] fp32, multiplied by the square root of the factor of q . k.
        values: [B, G, K, D] fp32.
        gone: [B, G, T, K] which of them had left when each query row came; rows of no meaning never have.
    """

    keys: Tensor
    values: Tensor
    gone: Tensor

    @property
    def last_BGK(self) -> Tensor:
        """Which of them have left in the end."""
        return self.gone[:, :, -1]


@dataclass(frozen=True)
class Exact:
    """Attention over some of the rows held: output [B, H, T, D], logarithm of its sum [B, H, T], weights [B, H, T, S].

    All in fp32; a query row without any row has the logarithm of nothing.
    """

    out: Tensor
    log: Tensor
    weights: Tensor

    @classmethod
    def over(cls, q_BHTD: Tensor, memory: Memory, call: Call, keep_BNTS: Tensor) -> Exact:
        """Over the rows that `keep` (N = 1 or G) allows."""
        groups, heads = memory.keys.view.shape[1], q_BHTD.shape[1]
        sets = keep_BNTS.shape[1]
        keep = keep_BNTS.repeat_interleave(heads // sets, 1) if sets > 1 else keep_BNTS
        scores = attend.group_scores(q_BHTD, memory.keys.view, "none") * call.scale
        scores = scores.masked_fill(~keep, -torch.inf)
        log = scores.logsumexp(-1)
        weights = (scores - log.masked_fill(log == -torch.inf, 0.0)[..., None]).exp()
        out = weights.unflatten(1, (groups, -1)) @ memory.values.view.float()[:, :, None]
        return cls(out.flatten(1, 2), log, weights)


@dataclass(frozen=True)
class Share:
    """What the state gives query rows: the mean value `out` [B, H, T, D], and the `log` [B, H, T] of its weight."""

    out: Tensor
    log: Tensor

    def merge(self, exact: Exact | Share) -> Tensor:
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
        zeros = like_BGTD.new_zeros(batch, groups, self.phi.features(size), size + 1, dtype=torch.float32)
        self._put("sums", zeros)
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

    def absorb(self, keys_BGKD: Tensor, values_BGKD: Tensor, gone_BGK: Tensor) -> None:
        """Add rows for good (keys scaled, fp32); `gone` says which are meant."""
        if keys_BGKD.shape[2] == 0:
            return
        self.settle_anchor(keys_BGKD, gone_BGK)
        for k, v, gone in zip(*(x.split(AT_ONCE, 2) for x in (keys_BGKD, values_BGKD, gone_BGK)), strict=True):
            self._absorb(k, v, gone)

    def _absorb(self, k: Tensor, v: Tensor, gone: Tensor) -> None:
        found = self._features(k, gone)
        old = self._get("scale")
        new = torch.maximum(old, found.log.amax(-1))
        weight = relative(found.log, new[..., None])
        sums = (found.value * weight[..., None]).mT @ with_one(v)
        self._put("sums", self._get("sums") * relative(old, new)[..., None, None] + sums)
        self._put("scale", new)
        if self.centred:
            apart = (k - self._get("anchor")[:, :, None]) * gone[..., None]
            self._put("offset", self._get("offset") + apart.sum(2))
            self._put("count", self._get("count") + gone.sum(-1))

    def settle_anchor(self, k: Tensor, gone: Tensor) -> None:
        """Put the anchor at the mean of the first rows that leave; where it lies only rounding depends on."""
        if not self.centred or k.shape[2] == 0:
            return
        mean = (k * gone[..., None]).sum(2) / gone.sum(-1, keepdim=True).clamp(min=1)
        self._put("anchor", torch.where(self._get("count")[..., None] == 0, mean, self._get("anchor")))

    def _features(self, k: Tensor, gone: Tensor) -> Features:
        """Of keys; rows that are not meant get the logarithm of nothing."""
        found = self.phi.keys(k - self._get("anchor")[:, :, None] if self.centred else k, self.weights)
        return Features(found.value * gone[..., None], found.log.masked_fill(~gone, -torch.inf))

    def read(self, q_BHTD: Tensor, dropped: Dropped) -> Share:
        """What the state, and rows dropped meanwhile, give query rows (scaled, fp32)."""
        groups = dropped.keys.shape[1]
        q = q_BHTD.unflatten(1, (groups, -1))
        batch, _, share, rows, size = q.shape
        flat = q.reshape(batch, groups, share * rows, size)
        found = self.phi.queries(flat, self.weights, self._centre(dropped, share))
        total, log = self._sum(found, dropped, share)
        norm = total[..., -1]
        safe = norm > 0  # the diagonal Taylor map may be negative: then the exact rows stand alone
        out = total[..., :-1] / torch.where(safe, norm, 1.0)[..., None]
        log = torch.where(safe, norm.clamp(min=torch.finfo(norm.dtype).tiny).log() + log + found.log, -torch.inf)
        return Share(out.view(batch, -1, rows, size), log.view(batch, -1, rows))

    def _centre(self, dropped: Dropped, share: int) -> Centre | None:
        """The mean of what had left when each query row came; for the J query heads of a group alike."""
        if not self.centred:
            return None
        anchor = self._get("anchor")[:, :, None]
        inside = dropped.gone.to(anchor.dtype)
        offset = self._get("offset")[:, :, None] + inside @ (dropped.keys - anchor)
        count = self._get("count")[:, :, None] + inside.sum(-1)
        offset = offset / count.clamp(min=1)[..., None]
        return Centre(anchor, offset.repeat(1, 1, share, 1))

    def _sum(self, found: Features, dropped: Dropped, share: int) -> tuple[Tensor, Tensor]:
        """phi(q) . sums [B, G, J T, D + 1], and the logarithm of the factor that it lacks [B, G, J T]."""
        sums, scale = self._get("sums"), self._get("scale")[:, :, None]
        if dropped.keys.shape[2] == 0:
            return found.value @ sums, scale.expand(*found.log.shape).masked_fill(scale == -torch.inf, 0.0)
        late = self._features(dropped.keys, dropped.last_BGK)
        log = late.log[:, :, None].masked_fill(~dropped.gone, -torch.inf)  # [B, G, T, K]
        top = torch.maximum(scale, log.amax(-1))
        factor = relative(log, top[..., None]).repeat(1, 1, share, 1)
        before = relative(scale, top).repeat(1, 1, share)[..., None] * (found.value @ sums)
        meanwhile = ((found.value @ late.value.mT) * factor) @ with_one(dropped.values)
        return before + meanwhile, top.masked_fill(top == -torch.inf, 0.0).repeat(1, 1, share)


def refuse_windows(call: Call) -> None:
    """Refuse models whose rows stop seeing tokens.

    Raises:
        ValueError: one does.
    """
    context = call.context_BT
    if call.visible is not None and bool(((call.visible.sum(-1) < context) & (context > 0)).any()):
        raise ValueError("this model forgets tokens by a sliding window of its own: a state cannot forget them")


def relative(log: Tensor, top: Tensor) -> Tensor:
    """exp(log - top), nothing where log is the logarithm of nothing."""
    return (log - top).exp().masked_fill(log == -torch.inf, 0.0)


def with_one(v_BGKD: Tensor) -> Tensor:
    """Values, and a one for the normaliser."""
    return torch.cat([v_BGKD, torch.ones_like(v_BGKD[..., :1])], -1)


def marked(weights: Weights) -> Mapping[str, Tensor]:
    """A map's weights as a layer's constants are named."""
    return {PARTS + name: part for name, part in weights.items()}


def unmarked(constants: Mapping[str, Tensor]) -> Weights:
    """The same, back."""
    return {name.removeprefix(PARTS): part for name, part in constants.items() if name.startswith(PARTS)}
