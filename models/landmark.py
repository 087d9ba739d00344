"""Landmark attention (arXiv 2305.16300) for training: any places of landmarks, group dropout, and the control token.

Shapes: B batch, H query heads, G key/value heads, T query rows (the last T of the S key rows), S key rows, N blocks, D
head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Marks:
    """What the rows of a batch are.

    Attributes:
        landmark: [B, S] which rows are landmarks. A block is the rows up to a landmark, which closes it.
        controlled: [B, S] the landmarks that the control token gates, which then is row 0; None: there is none.
    """

    landmark: Tensor
    controlled: Tensor | None = None


def grouped_attention(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, marks: Marks, scale: float, dropout: float = 0.0
) -> Tensor:
    """Attention with the grouped softmax of section 3.2; [B, H, T, D].

    A query reads the regular rows of its own block up to itself, and those of earlier blocks with (softmax within the
    block) x (weight of the block's landmark); earlier landmarks compete with the own block's rows in one softmax. No
    value of a landmark is read, and its own landmark is seen by no row of a block. Landmarks under control compete with
    each other alone, and all of them together through the control token (section 4.4). Each row's weights sum to 1.

    Since a block's weight times the softmax within it is exp(s + (its landmark's score - log-sum-exp of its scores)) up
    to the row's factor, one softmax over the regular rows does it, with a term that a block's rows have in common.

    Args:
        q_BHTD: queries.
        k_BGSD: keys.
        v_BGSD: values.
        marks: what the rows are; no landmark may stand at the start or right after another.
        scale: factor of q.k.
        dropout: probability with which an earlier block's weight is dropped (never the own block's); what stays is
            scaled up, as dropout does.
    """
    batch, heads, new, _ = q_BHTD.shape
    held, times = k_BGSD.shape[2], heads // k_BGSD.shape[1]
    k, v = k_BGSD.repeat_interleave(times, 1), v_BGSD.repeat_interleave(times, 1)
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    score = (q_BHTD @ k.transpose(2, 3)).to(wide) * scale
    landmark = marks.landmark
    block_BS = landmark.cumsum(1) - landmark.long()
    causal = torch.arange(held, device=score.device) <= torch.arange(held - new, held, device=score.device)[:, None]
    own = block_BS[:, held - new :, None] == block_BS[:, None]
    regular = ~landmark
    if marks.controlled is not None:  # the control token is of no block
        regular = regular & (torch.arange(held, device=score.device) > 0)
    here = (causal & own & regular[:, None])[:, None]
    past = (causal & ~own)[:, None]
    local_BHTN = logsumexp_by_block(score, past & regular[:, None, None], block_BS)
    gate_BHTS = score
    if marks.controlled is not None:
        gated = past & marks.controlled[:, None, None]
        among = score.masked_fill(~gated, -torch.inf).logsumexp(-1, keepdim=True)
        among = torch.where(gated.any(-1, keepdim=True), among, 0.0)
        gate_BHTS = torch.where(gated, score - among + score[..., :1], score)
    end_BS = _end_of_block(landmark, block_BS)
    of_block = block_BS[:, None, None].expand(batch, heads, new, held)
    lift = gate_BHTS.gather(3, end_BS[:, None, None].expand_as(of_block)) - local_BHTN.gather(3, of_block)
    seen = past & regular[:, None, None]
    logit = torch.where(here, score, torch.where(seen, score + lift, -torch.inf))
    nothing = ~(here | seen).any(-1, keepdim=True)  # the control token itself sees no row
    weight = logit.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
    if dropout:
        kept = torch.nn.functional.dropout(torch.ones_like(local_BHTN), dropout).gather(3, of_block)
        weight = torch.where(here, weight, weight * kept)
    return weight.to(v.dtype) @ v


def logsumexp_by_block(score_BHTS: Tensor, among: Tensor, block_BS: Tensor) -> Tensor:
    """Log of the sum of exp over the rows `among` of each block; 0 for a block that has none, so that all is finite."""
    blocks = block_BS.shape[1]
    index = block_BS[:, None, None].expand_as(score_BHTS)
    shown = score_BHTS.masked_fill(~among, -torch.inf)
    with torch.no_grad():
        low = torch.full_like(score_BHTS[..., :1], -torch.inf).expand(*score_BHTS.shape[:3], blocks)
        top = low.scatter_reduce(3, index, shown.detach(), "amax")
        top = top.masked_fill(top == -torch.inf, 0.0)
    total = torch.zeros_like(top).scatter_add(3, index, (shown - top.gather(3, index)).exp())
    return torch.where(total > 0, total, 1.0).log() + top


def _end_of_block(landmark_BS: Tensor, block_BS: Tensor) -> Tensor:
    """Where the landmark of each row's block stands; anywhere for the last block, which none has closed."""
    held = landmark_BS.shape[1]
    place = torch.arange(held, device=landmark_BS.device).expand_as(block_BS)
    ends = torch.zeros_like(block_BS).scatter_reduce(1, block_BS, place * landmark_BS, "amax")
    return ends.gather(1, block_BS)


@dataclass(frozen=True)
class Landmarked:
    """What the configuration of a model that was trained with landmarks says of them.

    Attributes:
        token: number of the landmark token; `control` of the control token.
        block: regular tokens before each landmark.
        length: regular tokens of the longest rows that were trained on.
        gated: whether the control token stands before each text.
    """

    token: int
    control: int
    block: int
    length: int
    gated: bool = False

    def note(self, config: Any, *, gated: bool) -> None:
        """Write it into a configuration."""
        config.lacuna_landmark = {**vars(self), "gated": gated}

    @classmethod
    def of(cls, config: Any) -> Landmarked:
        """Read it from a configuration.

        Raises:
            ValueError: the model was not trained with landmarks.
        """
        said = getattr(config, "lacuna_landmark", None)
        if not said:
            raise ValueError("this model was not trained with landmarks: train one (task train, `attention: landmark`)")
        return cls(**said)


def resized(model: Any, tokens: int) -> None:
    """Rows of the embeddings for tokens that the model did not know: the mean of the others, in place.

    A model that has as many rows already keeps them.
    """
    old = model.get_input_embeddings().weight
    if old.shape[0] >= tokens:
        return
    with torch.no_grad():
        before = [part.weight.clone() for part in (model.get_input_embeddings(), model.get_output_embeddings())]
        model.resize_token_embeddings(-(-tokens // 8) * 8, mean_resizing=False)  # products want multiples of 8
        for part, rows in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
            part.weight[: rows.shape[0]] = rows
            part.weight[rows.shape[0] :] = rows.mean(0)
