"""How many rows a method really attends, by layer, head and row length, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor

from ...models.budget import Budgeted, amount_of, share, word_of
from ...models.call import Call
from ...models.memory import Memory, Site
from ...models.method import Method
from ...results import rules
from ...results.fields import Data, Within
from ..lm import Session
from ..observe import Attended, batches, feed, joined, observed_by
from ..task import Outcome, Task


@dataclass(frozen=True)
class KeptRows(Task):
    """Rows attended by layer and head over the row's length, the union over the heads of a group, and its popularity.

    Top-Theta's accounts (arXiv 2502.08363). Effective k: rows that a set attends, in the mean over query rows (a set is
    a query head's, or a key/value head's where the method chooses for its group). Size factor: the same over what exact
    top-k of the method's own budget attends, over query rows longer than that; of selections with a budget in rows.
    V rows: the union of the rows that the query heads of a group attend, which is what must be read. Popularity of a
    token: share of the query rows that may see it whose union has it, the mean over key/value heads.

    Arguments: `corpus` a name in harness/data or a path; `window` tokens, the first `prompt` of them a prompt;
    `windows` how many at most; `lengths` and `places` into how many ranges row lengths and tokens of a window are cut.
    """

    corpus: Annotated[str, Data("harness/data")] = "prose"
    window: Annotated[int, Within(2)] = 1024
    windows: Annotated[int, Within(1)] = 4
    prompt: Annotated[int, Within(1)] = 64
    lengths: Annotated[int, Within(1, 64)] = 12
    places: Annotated[int, Within(1, 128)] = 32
    version: ClassVar[int] = 1

    def run(self, session: Session) -> Outcome:
        """Feed windows; a sample for each layer."""
        watch = Watch(self, session.method)
        for ids in batches(session, self.corpus, self.window, self.windows, self.prompt):
            with observed_by(session, Attended(session.binding.ledger, watch)):
                feed(session, ids, self.prompt)
        tallies = [tally.over_ranks(session) for _, tally in sorted(watch.tallies.items())]
        samples = [{"layer": layer, **self._sample(tally)} for layer, tally in enumerate(tallies)]
        kept, union = (sum(s[name] for s in samples) / len(samples) for name in ("kept_mean", "union_share"))
        part = sum(s["kept_share"] for s in samples) / len(samples)
        return Outcome({"effective_k": kept, "kept_share": part, "union_share": union, **_factor(tallies)}, samples)

    def _sample(self, tally: Tally) -> dict[str, Any]:
        some = tally.rows > 0  # a range may have no length of its own
        rows = tally.rows[some]
        kept = tally.kept[:, some] / rows
        visible = float(tally.context.sum())
        seen = tally.visible.unflatten(0, (self.places, -1)).sum(1).clamp(min=1)
        popular = tally.popular.mean(0).unflatten(0, (self.places, -1)).sum(1) / seen
        lists = {
            "length": tally.context[some] / rows,
            "kept": kept.mean(0),
            "least": kept.amin(0),
            "most": kept.amax(0),
        }
        found = {
            **{name: _rounded(values) for name, values in lists.items()},
            "sets": _rounded(tally.kept.sum(1) / rows.sum()),
            "union": _rounded(tally.union / visible),
            "popularity": _rounded(popular),
            "kept_mean": float(tally.kept.sum() / len(tally.kept) / rows.sum()),
            "kept_share": float(tally.kept.sum() / len(tally.kept)) / visible,
            "union_share": float(tally.union.mean()) / visible,
        }
        if tally.asked is not None:
            found["asked"] = _rounded(tally.asked[some] / rows)
        if tally.asked_longer > 0:
            found["factors"] = _rounded(tally.longer / tally.asked_longer)
        return found


def _factor(tallies: Sequence[Tally]) -> dict[str, float]:
    """Rows attended over rows asked for, of all layers and sets; none where no row is longer than what was asked."""
    wanted = sum(float(t.asked_longer) for t in tallies)
    return {"size_factor": sum(float(t.longer.mean()) for t in tallies) / wanted} if wanted else {}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.5g}") for v in values.tolist()]


def asked(method: Method, site: Site, context: Tensor) -> Tensor | None:
    """Rows that a selection's budget asks for at these row lengths, a share of which is one of the row's own length.

    None where it has no budget in rows.
    """
    if method.shape != "select" or not set(rules.BUDGET) <= vars(method).keys():
        return None
    budgeted = cast("Budgeted", method)
    return None if word_of(budgeted) == "bytes" else share(amount_of(budgeted, site), context)


@dataclass
class Tally:
    """Sums over the query rows of one layer; N sets, G key/value heads, M ranges of row lengths, L tokens of a window.

    Rows and their lengths [M], rows kept [N, M], asked for [M]; the same where a row is longer than what was asked, [N]
    and one number; the union [G]; how often a token was in it [G, L], and could have been [L].
    """

    groups: int
    rows: Tensor
    context: Tensor
    kept: Tensor
    asked: Tensor | None
    longer: Tensor
    asked_longer: Tensor
    union: Tensor
    popular: Tensor
    visible: Tensor

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        theirs = vars(other)
        sums: dict[str, Any] = {k: v + theirs[k] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **sums)

    def over_ranks(self, session: Session) -> Tally:
        """With the heads of all ranks, on the CPU."""
        names = ("kept", "longer", "union", "popular")
        heads = {name: joined(session, getattr(self, name), self.groups, 0) for name in names}
        rest: dict[str, Any] = {k: v.cpu() for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{**rest, **heads})


@dataclass
class Watch:
    """Tallies by layer, from the rows that each call attended."""

    task: KeptRows
    method: Method
    tallies: dict[int, Tally] = field(default_factory=dict)

    def __call__(self, memory: Memory, call: Call, keep_BNTL: Tensor) -> None:
        """Add a call of decoded rows."""
        layer, sets = memory.site.layer, max(len(memory.site.kv_heads), keep_BNTL.shape[1])
        new = self._tally(memory.site, call.context_BT, keep_BNTL.expand(-1, sets, -1, -1))
        self.tallies[layer] = self.tallies[layer].plus(new) if layer in self.tallies else new

    def _tally(self, site: Site, context_BT: Tensor, keep_BNTL: Tensor) -> Tally:
        groups = len(site.kv_heads)
        kept, tokens = keep_BNTL.sum(-1).double(), keep_BNTL.shape[3]
        wanted = asked(self.method, site, context_BT)
        longer = context_BT > wanted if wanted is not None else torch.zeros_like(context_BT, dtype=torch.bool)
        range_BTM = self._range(context_BT)
        union = keep_BNTL.unflatten(1, (groups, -1)).any(2)
        sees = context_BT[..., None] > torch.arange(tokens, device=context_BT.device)
        pad = (0, self.task.window + -self.task.window % self.task.places - tokens)
        return Tally(
            groups=groups,
            rows=range_BTM.sum((0, 1)),
            context=(context_BT[..., None] * range_BTM).sum((0, 1)),
            kept=torch.einsum("bnt,btm->nm", kept, range_BTM),
            asked=None if wanted is None else (wanted[..., None] * range_BTM).sum((0, 1)),
            longer=(kept * longer[:, None]).sum((0, 2)),
            asked_longer=((wanted if wanted is not None else 0) * longer.double()).sum(),
            union=union.sum((0, 2, 3)).double(),
            popular=torch.nn.functional.pad(union.sum((0, 2)).double(), pad),
            visible=torch.nn.functional.pad(sees.sum((0, 1)).double(), pad),
        )

    def _range(self, context_BT: Tensor) -> Tensor:
        """One-hot range of row lengths, [B, T, M]."""
        task = self.task
        at = (context_BT - task.prompt - 1) * task.lengths // (task.window - task.prompt)
        return torch.nn.functional.one_hot(at, task.lengths).double()
