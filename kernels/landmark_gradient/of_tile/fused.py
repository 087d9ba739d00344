"""The weights and the gradient of one tile's logits, which the kernels over queries and over keys share.

What a row has of each block is two numbers: the share that the block's landmark gives it, and the mean of dP by its
weights. Own blocks have no landmark yet: their share is 0 here, and delta stands for their mean.

Shape legend: M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block.
"""

import triton
import triton.language as tl

from ...landmark_attention.grouped.fused import block_softmax, mixed_logits


@triton.jit
def past_weights(score, lse, scale_log2, M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):
    """Weigh a tile of past blocks only.

    Args:
        score: (M, N) products of queries and keys.
        lse: (M,) log2 of the rows' sums of weights; +inf for rows that see nothing here.
        scale_log2: Factor of the scores, times log2(e).
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block.

    Returns:
        (M, NB, PB) weights, and (M, NB) their sums.
    """
    weight, total, _top, landmark = block_softmax(score, scale_log2, M, NB, PB, C)
    share = tl.exp2(landmark - lse[:, None])
    return weight * (share / total)[:, :, None], share


@triton.jit
def mixed_weights(score, lse, scale_log2, row, own, tile_row, first_block, column_row, member, M: tl.constexpr,
                  NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Weigh a tile in which some rows meet their own block.

    Args:
        score: (M, N) products of queries and keys.
        lse: (M,) log2 of the rows' sums of weights; +inf for rows that see nothing here.
        scale_log2: Factor of the scores, times log2(e).
        row: (M,) rows of the queries.
        own: (M,) own block of each.
        tile_row: First row of the tile.
        first_block: First block of the tile.
        column_row: (N,) rows of the columns, counted from the tile's first.
        member: (M,) whether the query is of the document.
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block.

    Returns:
        (M, NB, PB) weights, and (M, NB) their sums in past blocks, 0 elsewhere.
    """
    logit, past = mixed_logits(score, scale_log2, row, own, tile_row, first_block, column_row, member, M, NB, PB, C)
    weight = tl.exp2(logit - lse[:, None, None])
    return weight, tl.where(past, tl.sum(weight, 2), 0.0)


@triton.jit
def logit_gradient(weight, share, product, delta, M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr,
                   C: tl.constexpr):  # fmt: skip
    """Differentiate the logits of a tile.

    Args:
        weight: (M, NB, PB) weights.
        share: (M, NB) their sums in past blocks, 0 elsewhere.
        product: (M, N) products of the output's gradient and values.
        delta: (M,) output times gradient.
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block.

    Returns:
        (M, N) gradient of the logits.
    """
    product = tl.reshape(product, (M, NB, PB))
    some = tl.where(share > 0.0, share, 1.0)
    mean = tl.where(share > 0.0, tl.sum(weight * product, 2) / some, delta[:, None])
    grad = weight * (product - mean[:, :, None])
    place = tl.arange(0, PB)[None, None, :]
    return tl.reshape(tl.where(place == C - 1, (share * (mean - delta[:, None]))[:, :, None], grad), (M, NB * PB))
