"""Maps of attention weights, and of the rows that a method attends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ...models import attend
from ...models.call import Call
from ...models.ledger import Ledger
from ...models.memory import Memory
from ...results.fields import Data, Within
from ..lm import Session
from ..observe import Attended, Everything, batches, feed, joined, observed_by, some_layers
from ..task import Outcome, Task


@dataclass(frozen=True)
class AttentionMaps(Task):
    """Dense attention weights of one text beside the rows that the method attended, for some layers.

    The weights are softmax(q.k) over all rows, with the queries and keys that the layer sees under the method (before
    rotation, where the method itself turns them, as `landmark` does). A map
    has some query rows, spread evenly over those after the prompt, and ranges of tokens: `weight` is their sum over a
    range, `kept` the share of a range's visible tokens that was attended, both in the mean over heads. The metric
    `kept_mass` is the weight that falls on rows attended, in the mean over those query rows, all layers and heads.

    Arguments: `corpus` a name in harness/data or a path; `window` tokens, of which `prompt` are prefilled; `layers`
    which (default three, spread evenly); `head` one query head (default: the mean of all); `rows` and `columns` the
    size of a map.
    """

    corpus: Annotated[str, Data("harness/data")] = "prose"
    window: Annotated[int, Within(4)] = 96
    prompt: Annotated[int, Within(1)] = 48
    layers: tuple[Annotated[int, Within(0)], ...] | None = None
    head: Annotated[int, Within(0)] | None = None
    rows: Annotated[int, Within(1, 64)] = 20
    columns: Annotated[int, Within(1, 96)] = 40
    version: ClassVar[int] = 1

    def run(self, session: Session) -> Outcome:
        """Feed one window; a sample for each of the layers, its lists end where a row sees no more."""
        (ids,) = batches(session, self.corpus, self.window, 1, self.prompt)
        rows = torch.linspace(self.prompt, self.window - 1, min(self.rows, self.window - self.prompt)).round().long()
        watch = Watch(session.binding.ledger, rows)
        with observed_by(session, watch):
            feed(session, ids, self.prompt)
        maps = [watch.map(session, layer) for layer in sorted(watch.kept)]
        masses = [float((weights * kept).sum(-1).mean()) for weights, kept in (self._heads(*m) for m in maps)]
        chosen = some_layers(self.layers, len(maps))
        same = {"row": rows.tolist(), "edge": self._edges().tolist()}
        samples = [{"layer": i, "kept_mass": masses[i], **same, **self._sample(rows, *maps[i])} for i in chosen]
        return Outcome({"kept_mass": sum(masses) / len(masses), "kept_mass_min": min(masses)}, samples)

    def _heads(self, weights_HTL: Tensor, kept_NTL: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and rows attended of the query heads that are shown."""
        heads = len(weights_HTL)
        if self.head is not None and self.head >= heads:
            raise ValueError(f"there is no query head {self.head}: this model has {heads}, from 0 to {heads - 1}")
        kept = kept_NTL.repeat_interleave(heads // len(kept_NTL), 0)
        some = slice(None) if self.head is None else slice(self.head, self.head + 1)
        return weights_HTL[some], kept[some].to(weights_HTL)

    def _edges(self) -> Tensor:
        return torch.linspace(0, self.window, min(self.columns, self.window) + 1).round().long()

    def _sample(self, rows: Tensor, weights_HRL: Tensor, kept_NRL: Tensor) -> dict[str, Any]:
        weights, kept = (part.mean(0) for part in self._heads(weights_HRL, kept_NRL))
        visible = (torch.arange(self.window) <= rows[:, None]).to(weights)
        sees = _by_range(visible, self._edges())
        maps = {"weight": _by_range(weights, self._edges()), "kept": _by_range(kept, self._edges()) / sees.clamp(min=1)}
        ends = (sees > 0).sum(1).tolist()
        return {name: [_rounded(row[:end]) for row, end in zip(part, ends, strict=True)] for name, part in maps.items()}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.3g}") for v in values.tolist()]


def _by_range(values_RL: Tensor, edges: Tensor) -> Tensor:
    """Sums over the tokens between neighbouring edges."""
    total = torch.nn.functional.pad(values_RL.double().cumsum(1), (1, 0))
    return total[:, edges[1:]] - total[:, edges[:-1]]


class Watch(Attended):
    """Weights [H, t, L] and rows attended [N, t, L] of some query rows of each layer, call by call."""

    def __init__(self, ledger: Ledger, rows: Tensor) -> None:
        super().__init__(ledger, self._note)
        self.rows = rows
        self.whole = Everything()
        self.weights: dict[int, list[Tensor]] = {}
        self.kept: dict[int, list[Tensor]] = {}
        self.groups = 0

    def arrived(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Keep all keys."""
        self.groups = k_BGTD.shape[1]
        self.whole.arrived(memory, k_BGTD, v_BGTD)

    def attended(self, memory: Memory, call: Call, q_BHTD: Tensor, out_BHTD: Tensor) -> Tensor:
        """Note the dense weights of decoded rows, then what was attended."""
        if call.phase == "decode":
            whole, here = self.whole.of(memory), self._here(call)
            scores = attend.group_scores(q_BHTD[:, :, here], whole.keys.view, "none") * call.scale
            hidden = ~attend.visible_BNTS(whole, call)[:, :, here]
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            self.weights.setdefault(memory.site.layer, []).append(weights[0].cpu())
        return super().attended(memory, call, q_BHTD, out_BHTD)

    def _here(self, call: Call) -> Tensor:
        """Which of a call's rows are wanted."""
        return torch.isin(call.numbers_T, self.rows.to(call.numbers_T.device)).nonzero()[:, 0]

    def _note(self, memory: Memory, call: Call, keep_BNTL: Tensor) -> None:
        kept = keep_BNTL[0][:, self._here(call)]
        sets = max(self.groups, len(kept))
        self.kept.setdefault(memory.site.layer, []).append(kept.expand(sets, -1, -1).cpu())

    def map(self, session: Session, layer: int) -> tuple[Tensor, Tensor]:
        """Both of a layer over all its rows and tokens, with the heads of all ranks."""
        weights, kept = (joined(session, _stacked(p[layer]), self.groups, 0) for p in (self.weights, self.kept))
        return weights, kept


def _stacked(parts: list[Tensor]) -> Tensor:
    """Rows of several calls below each other, as long as the last."""
    tokens = parts[-1].shape[2]
    return torch.cat([torch.nn.functional.pad(part, (0, tokens - part.shape[2])) for part in parts], 1)
