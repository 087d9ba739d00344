"""Calibration of Top-Theta and Loki-Theta: thresholds for each layer, head and row length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import pad

from ...models import attend, many, threshold
from ...models.budget import amount_of, in_rows, word_of
from ...models.call import Call
from ...models.ledger import Ledger
from ...models.memory import Memory, Site
from ...models.method import Select
from ...models.methods.full import Full
from ...models.methods.loki import Loki
from ...models.methods.topk import Topk
from ...results import rules
from ...results.fields import ByteCount, Data, Keep, Needs, RowCount, Share, Within
from ..lm import TOKENS_AT_ONCE, Session
from ..task import Outcome, Task
from ..windows import read_windows

HELD_OUT = ("prose",)  # what tasks measure on


@dataclass(frozen=True)
class Thresholds(Task):
    """The (k+1)-th largest score of rows of each length: mean + sigma * standard deviation over a corpus's windows.

    Top-Theta Attention (arXiv 2502.08363). A strict comparison with a row's own (k+1)-th largest score keeps k rows.
    Artifact: layer.<i>.lengths [M], the lengths that were watched; layer.<i>.<signal> [N, M] for N sets of rows (query
    heads, or key/value heads), the signal being `pre` or `post` (exact scores before or after the softmax) or
    `lowrank`; with `pre` also layer.<i>.mass [H, M], the mean of exp(score - largest score) summed over the rows that
    exact top-k drops; float32.

    Arguments: `keep`, `rows`, `bytes`, `placement`, `heads` are the method's own; `d` and `basis` too where scores are
    those of d leading components. `sigma` deviations are added (published: 0.1). `tac: topk` (published) lets exact
    top-k act while calibrating, so that deeper layers see what they will see; the weights kept are normalised. `every`
    n-th length is watched; `smooth` is the deviation in tokens of a Gaussian over lengths, 0 for none. `corpus`,
    `tokens`, `window` say what to read; text that other tasks measure on is refused.
    """

    keep: Keep = None
    rows: RowCount = 64
    bytes: ByteCount = None
    placement: Literal["pre", "post"] = "pre"
    heads: Literal["query", "kv"] = "query"
    d: Annotated[int | float, Share("the head dimension")] | None = None
    basis: Annotated[Mapping[str, Any] | None, Needs("pca")] = None
    sigma: float = 0.1
    tac: Literal["topk", "none"] = "topk"
    every: Annotated[int, Within(1)] = 8
    smooth: Annotated[float, Within(0)] = 0.0
    corpus: Annotated[str, Data("harness/data")] = "calibration"
    tokens: Annotated[int, Within(256)] = 16384
    window: Annotated[int, Within(16)] = 1024
    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        rules.one_budget(self)
        half = (self.d is None) != (self.basis is None)
        rules.refuse(self, when=half, why="low-rank scores take both d and basis, others neither")
        after = self.d is not None and self.placement == "post"
        rules.refuse(self, when=after, why="low-rank scores stand before the softmax: set placement: pre")
        seen = f"{self.corpus!r} is what tasks measure on: thresholds from it would have seen the test"
        rules.refuse(self, when=self.corpus in HELD_OUT, why=seen)

    @property
    def signal(self) -> Literal["pre", "post", "lowrank"]:
        """What is compared with the thresholds."""
        return self.placement if self.d is None else "lowrank"

    def aim(self, memory: Memory, call: Call, length: Tensor) -> Tensor:
        """Rows that thresholds of rows so long aim at, as the method counts them."""
        sets = call.group if self.heads == "query" else 1
        keys, values = memory.keys.row_bytes, memory.values.row_bytes
        costs = (keys, values * sets) if self.d is None else (memory.aux["lead"].row_bytes, (keys + values) * sets)
        return in_rows(self, memory.site, length, threshold.cost(memory, *costs))

    def lengths(self, memory: Memory, call: Call) -> Tensor:
        """Row lengths to watch: every n-th of those that exceed what is aimed at, and the longest.

        Raises:
            ValueError: no row of a window does.
        """
        all_ = torch.arange(1, self.window + 1)
        longer = all_[all_ > self.aim(memory, call, all_)]
        if not len(longer):
            what = f"{word_of(self)} = {amount_of(self, memory.site)}"
            raise ValueError(f"no row of {self.window} tokens exceeds {what}: use a larger window")
        return torch.cat([longer[: -1 : self.every], longer[-1:]])

    def run(self, session: Session) -> Outcome:
        """Read the corpus and note the score at the place of each row's threshold."""
        scores: Select = Topk() if self.d is None else Loki(d=self.d)
        watch = Watch(self, scores)
        windows = read_windows(session, self.corpus, self.tokens, self.window)
        with session.instead(watch):
            for part in windows.split(max(1, TOKENS_AT_ONCE // self.window)):
                session.prefill(part.tolist())
        tensors: dict[str, Tensor] = {}
        for layer in sorted(watch.notes):
            tensors |= self._tables(layer, watch, session)
        means = {f"theta_layer{i}": float(tensors[f"layer.{i}.{self.signal}"].mean()) for i in watch.notes}
        return Outcome({"tokens": float(windows.numel()), **means}, artifact=save(tensors))

    def _tables(self, layer: int, watch: Watch, session: Session) -> dict[str, Tensor]:
        everyone, lengths = session.lm.world.gather(watch.notes[layer].on_cpu()), watch.lengths[layer]
        real = session.lm.shard.kv_heads_real
        sets = len(everyone[0].total) // everyone[0].groups  # of a key/value head; heads that only pad come last
        theta = torch.cat([n.threshold(self.sigma) for n in everyone])[: real * sets]
        found = {"lengths": lengths, self.signal: self._smoothed(lengths, theta)}
        if self.signal == "pre":
            heads = len(everyone[0].mass) // everyone[0].groups
            mass = torch.cat([n.mass / n.count for n in everyone])[: real * heads]
            found["mass"] = self._smoothed(lengths, mass)
        return {f"layer.{layer}.{name}": part.contiguous() for name, part in found.items()}

    def _smoothed(self, lengths: Tensor, values_NM: Tensor) -> Tensor:
        if self.smooth:
            apart = (lengths[:, None] - lengths).double() / self.smooth
            values_NM = values_NM @ (-apart.square() / 2).softmax(0)
        return values_NM.float()


@dataclass
class Notes:
    """Sums over rows of each watched length, float64: the (k+1)-th largest score and its square [N, M], mass [H, M]."""

    groups: int
    count: int
    total: Tensor
    squares: Tensor
    mass: Tensor

    def plus(self, other: Notes) -> Notes:
        """Both together."""
        sums = (a + b for a, b in zip(self._sums(), other._sums(), strict=True))
        return Notes(self.groups, self.count + other.count, *sums)

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.total, self.squares, self.mass

    def on_cpu(self) -> Notes:
        """For sending."""
        return Notes(self.groups, self.count, *(part.cpu() for part in self._sums()))

    def threshold(self, sigma: float) -> Tensor:
        """Mean + sigma * standard deviation, [N, M]."""
        mean = self.total / self.count
        return mean + sigma * (self.squares / self.count - mean.square()).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Watch(Full):
    """Attention of whole windows that notes where thresholds would stand, in the coordinates of `scores`."""

    task: Thresholds = field(default_factory=Thresholds)
    scores: Select = field(default_factory=Topk)
    notes: dict[int, Notes] = field(default_factory=dict)
    lengths: dict[int, Tensor] = field(default_factory=dict)

    def constants(self, site: Site) -> Mapping[str, Tensor]:
        """Those of the scores."""
        return self.scores.constants(site)

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """As the scores need it."""
        self.scores.write(memory, k_BGTD, v_BGTD)

    def attend_dense(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """The same, whether prompts are dense or sparse."""
        return self.attend(q_BHTD, memory, call, ledger)

    def attend(self, q_BHTD: Tensor, memory: Memory, call: Call, ledger: Ledger) -> Tensor:
        """Note, then attend what exact top-k leaves, or everything."""
        q = self.scores.project(q_BHTD, memory)
        layer = memory.site.layer
        self.lengths[layer] = self.task.lengths(memory, call)
        at = self.lengths[layer].to(q.device) - 1
        after_softmax_of_a_group = self.task.placement == "post" and self.task.heads == "kv"
        if many.fits(q, memory, call) and not after_softmax_of_a_group:
            return self._without_masks(q, memory, call, ledger, at)
        found = [self._note(q, memory, call, part) for part in at.split(attend.ROWS_AT_ONCE)]
        groups = memory.keys.view.shape[1]
        self._add(memory, q, *(torch.cat(part, -1) for part in zip(*found, strict=True)))
        if self.task.tac == "none":
            return super().attend(q, memory, call, ledger)
        keep = self._kept(q, memory, call)
        ledger.count(memory, call, attend.union_BGT(keep, groups), 0.0)
        return attend.masked(q, memory, keep, call)

    def _add(self, memory: Memory, q: Tensor, total: Tensor, squares: Tensor, mass: Tensor) -> None:
        layer = memory.site.layer
        new = Notes(memory.keys.view.shape[1], q.shape[0], total, squares, mass)
        self.notes[layer] = self.notes[layer].plus(new) if layer in self.notes else new

    def _without_masks(self, q: Tensor, memory: Memory, call: Call, ledger: Ledger, at: Tensor) -> Tensor:
        """The same through the kernels for many rows, in memory that grows with the window."""
        how = "none" if self.task.heads == "query" else "max"
        ranked = self.scores.score_rows(q, memory)
        kth, after = many.border(*ranked, self.task.aim(memory, call, call.context_BT), call, how)
        kept = many.above(q, memory, call, (kth + after) / 2, how, rank=ranked)
        mass = (kept.total_BHT - kept.kept_BHT).clamp(min=0)[..., at].double().sum(0)
        if self.task.signal == "post":  # of each query head: the softmax keeps the order
            after = (after - many.weight_sums(q, memory, call)).exp()
        next_ = after[..., at].double()
        self._add(memory, q, next_.sum(0), next_.square().sum(0), mass)
        if self.task.tac == "none":
            return super().attend(q, memory, call, ledger)
        ledger.count(memory, call, kept.read_BGT, 0.0)
        return kept.out_BHTD

    def _kept(self, q: Tensor, memory: Memory, call: Call) -> Tensor:
        every = torch.arange(call.new, device=q.device)
        parts = [self._ranked(q, memory, call, rows)[2] for rows in every.split(attend.ROWS_AT_ONCE)]
        return torch.cat([pad(part, (0, int(call.seen) - part.shape[-1])) for part in parts], 2)

    def _note(self, q: Tensor, memory: Memory, call: Call, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over the batch for some rows: threshold and its square [N, m], mass [H, m]."""
        scores, rank, keep = self._ranked(q, memory, call, rows)
        next_ = rank.masked_fill(keep, -torch.inf).amax(-1).double()
        weights = (scores - scores.amax(-1, keepdim=True)).exp().double()
        mass = (weights * ~threshold.per_head(keep, scores.shape[1])).sum(-1)
        return next_.sum(0), next_.square().sum(0), mass.sum(0)

    def _ranked(self, q: Tensor, memory: Memory, call: Call, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [B, H, m, S], what ranks the rows [B, N, m, S], and the k best of each; S ends at the last."""
        last = int(rows[-1]) + 1  # nothing later is seen: half of the work
        seen = attend.visible_BTS(memory, call)[:, None, rows, :last]
        q_BHTW, k_BGSW = self.scores.score_rows(q[:, :, rows], memory)
        scores = (attend.group_scores(q_BHTW, k_BGSW[:, :, :last], "none") * call.scale).masked_fill(~seen, -torch.inf)
        signal = scores.softmax(-1).masked_fill(~seen, -torch.inf) if self.task.signal == "post" else scores
        rank = threshold.over_group(signal, k_BGSW.shape[1], self.task.heads)
        k = self.task.aim(memory, call, call.context_BT[:, rows])
        return scores, rank, attend.largest(rank, k)
