"""Calibrated thresholds: read for this rank's heads, looked up by a row's length, applied within bounds.

An artifact holds for each layer the calibrated row lengths, `layer.<i>.lengths` [M], and for one signal (`pre` or
`post`: exact scores before or after the softmax; `lowrank`: scores of leading components) `layer.<i>.<signal>` [N, M].

Shapes: B batch, H query heads, G key/value heads, N sets of rows chosen (G or H), T query rows, S rows held, M lengths,
L layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from . import attend
from .budget import Cost
from .call import Call
from .memory import Memory, Site

Between = Literal["linear", "nearest"]


def cost(memory: Memory, visible: int, row: int) -> Cost:
    """Bytes a query row reads of each key/value head: `visible` of each row to score it, `row` of each row chosen.

    Thresholds and sums of values, which a calibration does not have, are left out.
    """
    heads = memory.site.kv_heads_real
    return Cost(row * heads, visible * heads)


def read_table(site: Site, signal: str, between: Between) -> Tensor:
    """Values [N, L] of this rank's sets of rows for lengths 1 to the longest calibrated one, float32.

    Raises:
        ValueError: the artifact is of another signal or of another model.
    """
    name = f"layer.{site.layer}.{signal}"
    with safe_open(site.artifacts["thresholds"], "pt") as file:
        if name not in file.keys():  # noqa: SIM118 - it is no mapping
            raise ValueError(f"these thresholds have no {name!r}: calibrate on the scores that the method looks at")
        values, lengths = file.get_tensor(name), file.get_tensor(f"layer.{site.layer}.lengths")
    if values.shape[0] % site.kv_heads_real:
        want = f"a multiple of {site.kv_heads_real}"
        raise ValueError(
            f"the thresholds have {values.shape[0]} sets, this model needs {want}: calibrate on this model"
        )
    share = values.shape[0] // site.kv_heads_real
    padding = torch.zeros(share, values.shape[1])  # heads that only pad; nobody looks at them
    parts = [values[h * share : (h + 1) * share] if h < site.kv_heads_real else padding for h in site.kv_heads]
    return fill(lengths, torch.cat(parts).float(), between)


def fill(lengths_M: Tensor, values_NM: Tensor, between: Between) -> Tensor:
    """Values for every length from 1 to the longest, [N, L].

    Between two calibrated lengths: on the line, or the nearest (of two equally near the shorter). Below the shortest it
    is the shortest's value; `look_up` does the same beyond the longest.
    """
    want = torch.arange(1, int(lengths_M[-1]) + 1)
    right = torch.searchsorted(lengths_M, want)
    left = (right - 1).clamp(min=0)
    gap = (lengths_M[right] - lengths_M[left]).clamp(min=1)
    part = ((want - lengths_M[left]) / gap).clamp(0, 1)
    if between == "nearest":
        part = (part > 0.5).float()
    return values_NM[:, left] * (1 - part) + values_NM[:, right] * part


def look_up(table_NL: Tensor, call: Call, sets: int) -> Tensor:
    """The value of each query row's own length, [B, N, T].

    Raises:
        ValueError: the table is for another number of sets.
    """
    return table_NL[:, _places_BT(table_NL, call, sets)].transpose(0, 1)


def join(memories: Sequence[Memory], names: Iterable[str]) -> None:
    """Put the tables of all layers side by side, so that `of_row` looks all of them up in one launch a step."""
    for name in names:
        alike: dict[torch.Size, list[Memory]] = {}
        for memory in (one for one in memories if name in one.constants):
            alike.setdefault(memory.constants[name].shape, []).append(memory)
        for some in alike.values():
            whole_LNM = torch.stack([memory.constants[name] for memory in some])
            for place, memory in enumerate(some):
                memory.joined = memory.joined | {name: (whole_LNM, place)}


def of_row(memory: Memory, name: str, call: Call, sets: int) -> Tensor:
    """The value of a single query row's own length, [B, N]; joined tables are looked up by the first layer of a step.

    Raises:
        ValueError: the table is for another number of sets.
    """
    if name not in memory.joined:
        return look_up(memory.constants[name], call, sets)[..., 0]
    whole_LNM, place = memory.joined[name]
    at_B = _places_BT(whole_LNM[0], call, sets)[:, 0]
    now_LNB = call.once(("looked up", name, whole_LNM.shape), lambda: whole_LNM[:, :, at_B])
    return now_LNB[place].T


def _places_BT(table_NM: Tensor, call: Call, sets: int) -> Tensor:
    """Where the value of each query row's own length stands."""
    if table_NM.shape[0] != sets:
        raise ValueError(
            f"the thresholds are for {table_NM.shape[0]} sets of rows, the method has {sets}: the calibration's "
            "argument `heads` must be the method's"
        )
    longest = table_NM.shape[1] - 1
    return call.once(("length", longest), lambda: (call.context_BT - 1).clamp(0, longest))


def choose(rank_BNTS: Tensor, above_BNTS: Tensor, low_BT: Tensor, high_BT: Tensor) -> Tensor:
    """The rows above the threshold; where they are fewer than `low` or more than `high`, so many of the largest.

    Only those rows out of bounds need a selection; all others need no more than the comparison.
    """
    count = above_BNTS.sum(-1)
    k_BNT = count.maximum(low_BT[:, None]).minimum(high_BT[:, None])
    fits = k_BNT == count
    return (
        above_BNTS if bool(fits.all()) else torch.where(fits[..., None], above_BNTS, attend.largest(rank_BNTS, k_BNT))
    )


def most_recent(above_BNTS: Tensor, high_BT: Tensor) -> Tensor:
    """Of the rows above the threshold, at most `high` of the last."""
    later = above_BNTS.flip(-1).cumsum(-1).flip(-1)
    return above_BNTS & (later <= high_BT[:, None, :, None])


def per_head(part: Tensor, heads: int) -> Tensor:
    """[B, N, ...] for each query head, [B, H, ...]."""
    return part.repeat_interleave(heads // part.shape[1], 1)


def over_group(score_BHTS: Tensor, groups: int, heads: str) -> Tensor:
    """What ranks the rows: each query head's own scores ("query"), or the largest of its group ("kv")."""
    return score_BHTS.unflatten(1, (groups, -1)).amax(2) if heads == "kv" else score_BHTS


def weighted(kept_BHTS: Tensor, missing_BHT: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """Sum of values and the share of weight that is missing.

    Args:
        kept_BHTS: exp(score - m) of the rows kept, 0 elsewhere, for any m of each row.
        missing_BHT: what the dropped rows add to the softmax's denominator, over the same exp(m).
        memory: holds the values.

    Returns:
        [B, H, T, D], float32, and [B, H, T].
    """
    total = (kept_BHTS.sum(-1) + missing_BHT).clamp(min=torch.finfo(torch.float32).tiny)
    values = memory.values.view.float()
    batch, heads, rows, held = kept_BHTS.shape
    grouped = (kept_BHTS / total[..., None]).view(batch, values.shape[1], heads // values.shape[1] * rows, held)
    return (grouped @ values).view(batch, heads, rows, -1), missing_BHT / total
