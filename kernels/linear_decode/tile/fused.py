"""Tiles of a linear state: loaded, stepped by the row that leaves, written, and weighed by features of the queries.

Shape legend: B batch, H query heads, G KV heads, J query heads of a KV head, F features, D head dim, T features of a
tile, L of which all threads hold at once, C columns of a block.
"""

import triton
import triton.language as tl


@triton.jit
def held_of(state_at, feature, in_dim, FEATURES: tl.constexpr):
    """Load a tile of a state.

    Args:
        state_at: (T, C) pointers to the state.
        feature: (T,) features of the tile.
        in_dim: Which columns there are.
        FEATURES: F.

    Returns:
        The tile.
    """
    return tl.load(state_at, mask=(feature < FEATURES)[:, None] & in_dim[None, :], other=0.0)


@triton.jit
def sum_of_own(rows, LINES: tl.constexpr):
    """Let each thread add up the rows that it holds, which it does alone.

    Args:
        rows: (T, C).
        LINES: L, rows that all threads hold at once.

    Returns:
        (L, C).
    """
    return tl.sum(tl.reshape(rows, [rows.shape[0] // LINES, LINES, rows.shape[1]]), 0)


@triton.jit
def weighed(sums, new, q_at, inside, member, in_group, GROUP: tl.constexpr, FEATURES: tl.constexpr,
            LINES: tl.constexpr, SUMMED: tl.constexpr):  # fmt: skip
    """Add a tile, weighed by features of the queries, to what each query head has.

    Args:
        sums: Of each head (L, C), or, with a product, of all (J, C).
        new: (T, C) tile of the state.
        q_at: (T,) pointers to features of the first query head.
        inside: Which features there are.
        member: (J,) query heads, from zero.
        in_group: Which of these there are.
        GROUP: How many.
        FEATURES: F.
        LINES: L.
        SUMMED: Whether there is no matrix product.

    Returns:
        The sums.
    """
    if SUMMED:
        found = ()
        for head in tl.static_range(GROUP):
            q = tl.load(q_at + head * FEATURES, mask=inside, other=0.0).to(tl.float32)
            found += (sums[head] + sum_of_own(q[:, None] * new, LINES),)  # type: ignore[assignment]
    else:
        at, mask = q_at[None, :] + (member * FEATURES)[:, None], in_group[:, None] & inside[None, :]
        q = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        found = (tl.dot(q, new, sums[0], input_precision="tf32x3"),)  # type: ignore[assignment]
    return found


@triton.jit
def together(sums, member, GROUP: tl.constexpr, SUMMED: tl.constexpr):
    """Put what each query head has into one tensor.

    Args:
        sums: As `weighed` has them.
        member: (J,) query heads, from zero.
        GROUP: How many there are.
        SUMMED: Whether there is no matrix product.

    Returns:
        (J, C).
    """
    acc = sums[0]
    if SUMMED:
        acc = tl.zeros([member.shape[0], acc.shape[1]], tl.float32)
        for head in tl.static_range(GROUP):
            acc = tl.where((member == head)[:, None], tl.sum(sums[head], 0)[None, :], acc)
    return acc


@triton.jit
def stepped(held, sums, state_at, q_at, k_at, feature, v, decay, factor, leaves, member, in_group, in_dim,
            GROUP: tl.constexpr, FEATURES: tl.constexpr, LINES: tl.constexpr, SUMMED: tl.constexpr):  # fmt: skip
    """Add the row that leaves to a tile, write it, and weigh it.

    Args:
        held: (T, C) tile of the state.
        sums: As `weighed` has it.
        state_at: (T, C) pointers to the state.
        q_at: (T,) pointers to features of the first query head.
        k_at: (T,) pointers to features of the row.
        feature: (T,) features of the tile.
        v: (C,) value of the row.
        decay: Of the state.
        factor: Of the row.
        leaves: Whether there is a row.
        member: (J,) query heads, from zero.
        in_group: Which of these there are.
        in_dim: Which columns there are.
        GROUP: How many query heads.
        FEATURES: F.
        LINES: L.
        SUMMED: Whether there is no matrix product.

    Returns:
        The sums.
    """
    inside = feature < FEATURES
    row = tl.where(leaves, tl.load(k_at, mask=inside, other=0.0).to(tl.float32) * factor, 0.0)
    new = held * decay + row[:, None] * v[None, :]
    tl.store(state_at, new, mask=inside[:, None] & in_dim[None, :])
    return weighed(sums, new, q_at, inside, member, in_group, GROUP, FEATURES, LINES, SUMMED)
