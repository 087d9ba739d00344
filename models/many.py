"""Many query rows through the kernels for them, in memory that grows with the text; on a CPU masks do, piece by piece.

Shapes: B batch, H query heads, G key/value heads, N sets of rows chosen (G or H), T query rows, S rows held, D head
dimension, W width of the rows that rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.chosen_prefill import OP as CHOSEN_PREFILL
from ..kernels.column_sums import OP as COLUMN_SUMS
from ..kernels.column_sums import row_sums
from ..kernels.kth_score import OP as KTH_SCORE
from ..kernels.rank_counts import OP as RANK_COUNTS
from ..kernels.threshold_prefill import OP as THRESHOLD_PREFILL
from ..kernels.threshold_prefill.eager import Kept
from ..kernels.window_votes import OP as WINDOW_VOTES
from .call import Call
from .memory import Memory


def fits(q_BHTD: Tensor, memory: Memory, call: Call) -> bool:
    """Whether the kernels can take this call: many rows on a GPU, plainly causal over everything that came."""
    return q_BHTD.is_cuda and call.new > 1 and plain(memory, call)


def plain(memory: Memory, call: Call) -> bool:
    """Whether every token is held, and each row sees all before it but padding at the left."""
    return memory.columns is None and (call.visible is None or call.causal)


def fits_hidden(q_BHTD: Tensor, call: Call) -> bool:
    """Whether the kernels can take rows that see all that is held, but for padding and holes before it."""
    return q_BHTD.is_cuda and call.new > 1 and (call.visible is None or call.causal)


def after_hidden(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """Attend all rows held but padding and holes, which lie before all others; returns [B, H, T, D]."""
    hidden = (memory.numbers_BNS(q_BHTD.shape[0]) < call.first[:, None, None]).sum(-1)
    batch, groups = memory.keys.view.shape[:2]
    each, share = batch * groups, q_BHTD.shape[1] // groups
    # To the kernel, heads that hold different rows are sequences of their own.
    q = q_BHTD.reshape(each, share, *q_BHTD.shape[2:])
    k, v = (part.view.flatten(0, 1)[:, None] for part in (memory.keys, memory.values))
    none = torch.full((each, 1, call.new), -torch.inf, device=q.device)
    first = hidden.expand(-1, groups).reshape(each).int()
    return THRESHOLD_PREFILL(q, k, v, q, k, none, None, first, call.scale, "max").out_BHTD.view(q_BHTD.shape)


def best(
    q_BHTW: Tensor, k_BGSW: Tensor, budget_BT: Tensor, q_BHTD: Tensor, memory: Memory, call: Call, how: str
) -> Kept:
    """Attend the rows with the largest products, as many as the budget says; equal ones at the border are left out.

    Args:
        q_BHTW: queries that rank.
        k_BGSW: keys that rank.
        budget_BT: rows of each query row.
        q_BHTD: queries that attend.
        memory: holds keys and values.
        call: the call.
        how: "max" ranks once for the query heads of a group, "none" for each.

    Returns:
        What `threshold_prefill` returns.
    """
    kth, after = border(q_BHTW, k_BGSW, budget_BT, call, how)
    # Halfway: another order of summation moves a score across only where two lie within rounding of each other.
    return above(q_BHTD, memory, call, (kth + after) / 2, how, rank=(q_BHTW, k_BGSW))


def border(q_BHTW: Tensor, k_BGSW: Tensor, budget: Tensor, call: Call, how: str) -> tuple[Tensor, Tensor]:
    """The smallest product of each row that the budget takes, and the largest that it leaves, [B, N, T].

    Args:
        q_BHTW: queries that rank.
        k_BGSW: keys that rank.
        budget: rows of each query row, [B, T], or of each set, [B, N, T]; negative where the border is not asked for.
        call: the call.
        how: "max" ranks once for the query heads of a group, "none" for each.
    """
    sets = k_BGSW.shape[1] if how == "max" else q_BHTW.shape[1]
    budget = (budget if budget.ndim == 3 else budget[:, None].expand(-1, sets, -1)).int()
    kth, after = KTH_SCORE(q_BHTW, k_BGSW, budget, call.first.int(), call.scale, how)
    return kth, after


def above(
    q_BHTD: Tensor,
    memory: Memory,
    call: Call,
    threshold_BNT: Tensor,
    how: str,
    shift_BHT: Tensor | None = None,
    rank: tuple[Tensor, Tensor] | None = None,
    weigh: str = "scores",
) -> Kept:
    """Attend the rows that rank strictly above a threshold.

    Args:
        q_BHTD: queries.
        memory: holds keys and values.
        call: the call.
        threshold_BNT: in units of scaled scores.
        how: "max" ranks once for the query heads of a group, "none" for each.
        shift_BHT: subtracted from each head's ranks.
        rank: queries and keys that rank; default those that attend.
        weigh: by what sums are: "scores" or "ranks".

    Returns:
        What `threshold_prefill` returns.
    """
    k, v = memory.keys.view, memory.values.view
    rank_q, rank_k = rank or (q_BHTD, k)
    arguments = (threshold_BNT.float(), shift_BHT, call.first.int(), call.scale, how, weigh)
    kept: Kept = THRESHOLD_PREFILL(q_BHTD, k, v, rank_q, rank_k, *arguments)
    return kept


def count_above(rank: tuple[Tensor, Tensor], call: Call, threshold_BNT: Tensor, how: str) -> Tensor:
    """Count what ranks strictly above a threshold, [B, N, T].

    Args:
        rank: queries and keys that rank.
        call: the call.
        threshold_BNT: in units of scaled scores.
        how: "max" ranks once for the query heads of a group, "none" for each.
    """
    count: Tensor = RANK_COUNTS(*rank, threshold_BNT.float(), call.first.int(), call.scale, how)
    return count


def chosen(q_BHTD: Tensor, memory: Memory, call: Call, bits_BNTW: Tensor, page: int) -> Tensor:
    """Attend the pages of a text whose bits are set for each row, as far as the row sees them; [B, H, T, D]."""
    k, v = memory.keys.view, memory.values.view
    out: Tensor = CHOSEN_PREFILL(q_BHTD, k, v, bits_BNTW, call.first.int(), page, call.scale)[0]
    return out


def weight_sums(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """Log of each row's sum of exp(scores), [B, H, T]."""
    return row_sums(q_BHTD, memory.keys.view, call.first.int(), call.scale)


def attention_received(q_BHTD: Tensor, memory: Memory, call: Call) -> Tensor:
    """Attention that each row held gets from all query rows and heads of its group, [B, G, S]."""
    sums: Tensor = COLUMN_SUMS(q_BHTD, memory.keys.view, call.first.int(), call.scale)
    return sums


def votes(q_BHTD: Tensor, width_B: Tensor, memory: Memory, call: Call, group: str, kernel: int, pooling: str) -> Tensor:
    """Pooled votes of the last rows, [B, G, S]; zero for those rows themselves."""
    arguments = (call.first.int(), width_B.int(), call.scale, group, kernel, pooling)
    pooled: Tensor = WINDOW_VOTES(q_BHTD, memory.keys.view, *arguments)
    return pooled


def exceeding(kept: Kept, missing_BHT: Tensor) -> tuple[Tensor, Tensor]:
    """Weigh the rows kept against what is missing.

    Args:
        kept: what was attended.
        missing_BHT: what dropped rows add to the softmax's denominator, over exp of the row's largest score.

    Returns:
        [B, H, T, D] float32, and [B, H, T] the share of weight that lacks.
    """
    total = (kept.kept_BHT + missing_BHT).clamp(min=torch.finfo(torch.float32).tiny)
    return kept.out_BHTD.float() * (kept.kept_BHT / total)[..., None], missing_BHT / total
