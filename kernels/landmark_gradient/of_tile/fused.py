"""The gradient of one tile's logits, which the kernels over queries and over keys share.

Shape legend: M query rows of a tile, N columns of a tile = NB blocks * PB columns, C rows of a block.
"""

import triton
import triton.language as tl

from ...landmark_attention.grouped.fused import block_softmax, mixed_logits


@triton.jit
def past_gradient(score, product, lse, delta, scale_log2, M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr,
                  C: tl.constexpr):  # fmt: skip
    """Differentiate a tile of past blocks only.

    Args:
        score: (M, N) products of queries and keys.
        product: (M, N) products of the output's gradient and values.
        lse: (M,) log2 of the rows' sums of weights; +inf for rows that see nothing here.
        delta: (M,) output times gradient.
        scale_log2: Factor of the scores, times log2(e).
        M: Query rows.
        NB: Blocks.
        PB: Columns of a block.
        C: Rows of a block.

    Returns:
        (M, N) weights, and (M, N) gradient of the logits.
    """
    weight, total, _top, landmark = block_softmax(score, scale_log2, M, NB, PB, C)
    share = tl.exp2(landmark - lse[:, None])
    within = weight / total[:, :, None]
    product = tl.reshape(product, (M, NB, PB))
    mean = tl.sum(within * product, 2)
    weight = within * share[:, :, None]
    place = tl.arange(0, PB)[None, None, :]
    of_landmark = (share * (mean - delta[:, None]))[:, :, None]
    grad = tl.where(place == C - 1, of_landmark, weight * (product - mean[:, :, None]))
    return tl.reshape(weight, (M, NB * PB)), tl.reshape(grad, (M, NB * PB))


@triton.jit
def mixed_gradient(score, product, lse, delta, scale_log2, row, own, tile_row, first_block, column_row, member,
                   M: tl.constexpr, NB: tl.constexpr, PB: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Differentiate a tile in which some rows meet their own block.

    Args:
        score: (M, N) products of queries and keys.
        product: (M, N) products of the output's gradient and values.
        lse: (M,) log2 of the rows' sums of weights; +inf for rows that see nothing here.
        delta: (M,) output times gradient.
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
        (M, N) weights, and (M, N) gradient of the logits.
    """
    logit, within, past = mixed_logits(
        score, scale_log2, row, own, tile_row, first_block, column_row, member, M, NB, PB, C
    )
    weight = tl.exp2(logit - lse[:, None, None])
    grad = weight * (tl.reshape(product, (M, NB, PB)) - delta[:, None, None])
    of_landmark = tl.where(past, tl.sum(grad, 2)[:, :, None], 0.0)
    place = tl.arange(0, PB)[None, None, :]
    grad = tl.where(place == C - 1, of_landmark, grad - within * of_landmark)
    return tl.reshape(weight, (M, NB * PB)), tl.reshape(grad, (M, NB * PB))
