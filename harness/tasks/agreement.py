"""Agreement of the rows that a method chooses with those of exact top-k."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from ...models import attend
from ...models.call import Call
from ...models.memory import Memory
from ...results.fields import Data, Within
from ..lm import TOKENS_AT_ONCE, Session
from ..task import Outcome, Task
from ..windows import read_windows


@dataclass(frozen=True)
class Agreement(Task):
    """Recall and Jaccard index of the chosen rows against as many rows with the largest exact scores, by layer and set.

    For each row of held-out text that a selection left incomplete: with k rows chosen, c of them among the k best,
    recall is c / k and the Jaccard index c / (2k - c), both averaged over rows. A set is a query head's, or a key/value
    head's where the method chooses for its group, which is then ranked by its largest score. Loki's paper reports the
    Jaccard index; its code divides by k, which is recall.

    Arguments: `corpus` a name in harness/data or a path; `window` tokens; `windows` how many at most.
    """

    corpus: Annotated[str, Data("harness/data")] = "prose"
    window: Annotated[int, Within(2)] = 1024
    windows: Annotated[int, Within(1)] = 2
    version: ClassVar[int] = 1
    headline: ClassVar[str] = "recall"
    better: ClassVar[Literal["lower", "higher"]] = "higher"

    def run(self, session: Session) -> Outcome:
        """Feed windows as rows that the method acts on; samples hold each layer and set.

        Raises:
            ValueError: the method chooses no rows, or not by them, or none was left out.
        """
        if session.method.shape != "select":
            raise ValueError(f"{session.cell.method.name} does not choose rows of a cache: agreement is of selections")
        if session.method.inserts(session.binding.model.config) is not None:  # its keys are held before rotation
            raise ValueError(
                f"{session.cell.method.name} chooses by tokens of its own: no q.k of its rows to agree with"
            )
        watch = session.binding.ledger.watch = Watch()
        rows = read_windows(session, self.corpus, self.windows * self.window, self.window)
        for part in rows.split(max(1, TOKENS_AT_ONCE // self.window)):
            session.score(part, prompt=1)
        session.binding.ledger.watch = None
        if not watch.sums:
            raise ValueError(f"{session.cell.method.name} does not choose rows of a cache: agreement is of selections")
        real = session.lm.shard.kv_heads_real
        samples = [s for layer in sorted(watch.sums) for s in _samples(layer, watch, session, real)]
        if not samples:
            raise ValueError(f"{session.cell.method} left no row of {self.window} tokens incomplete")
        total = sum(s["rows"] for s in samples)
        means = {name: sum(s[name] * s["rows"] for s in samples) / total for name in ("recall", "jaccard")}
        return Outcome({**means, "rows": float(total)}, samples)


def _samples(layer: int, watch: Watch, session: Session, real: int) -> list[dict[str, float]]:
    everyone = session.lm.world.gather((watch.sums[layer].cpu(), watch.groups))
    share = len(everyone[0][0]) // everyone[0][1]
    sums = torch.cat([part for part, _ in everyone])[: real * share].tolist()
    return [
        {"layer": layer, "set": n, "recall": recall / rows, "jaccard": jaccard / rows, "rows": rows}
        for n, (recall, jaccard, rows) in enumerate(sums)
        if rows
    ]


@dataclass
class Watch:
    """Sums over rows by layer: recall, Jaccard index and number of incomplete rows of each set, [N, 3]."""

    sums: dict[int, Tensor] = field(default_factory=dict)
    groups: int = 0

    def __call__(self, memory: Memory, call: Call, q_BHTD: Tensor, keep_BNTS: Tensor) -> None:
        """Compare; called by the ledger for all query rows of a call, the query in the coordinates of the keys."""
        self.groups = memory.keys.view.shape[1]
        for rows in attend.pieces(call):
            new = self._compare(memory, call, q_BHTD[:, :, rows], keep_BNTS[:, :, rows], rows)
            self.sums[memory.site.layer] = self.sums.get(memory.site.layer, 0) + new

    def _compare(self, memory: Memory, call: Call, q_BHTD: Tensor, keep_BNTS: Tensor, rows: slice) -> Tensor:
        reduce = "max" if keep_BNTS.shape[1] == self.groups else "none"
        scores = attend.group_scores(q_BHTD, memory.keys.view, reduce)
        seen = attend.visible_BTS(memory, call)[:, None, rows]
        k = keep_BNTS.sum(-1)
        best = attend.largest(scores.masked_fill(~seen, -torch.inf), k)
        common = (keep_BNTS & best).sum(-1).double()
        partial = (k > 0) & (k < call.context_BT[:, None, rows])
        parts = (common / k.clamp(min=1), common / (2 * k - common).clamp(min=1), torch.ones_like(common))
        return torch.stack([(part * partial).sum((0, 2)) for part in parts], -1)
