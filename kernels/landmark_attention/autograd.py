"""Landmark attention as one call with a gradient, for training: a custom operator of torch.

As such it works under autograd, `torch.compile` and DistributedDataParallel. It always runs the fused twins.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..op import load_op


def _forward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from .fused import landmark_forward  # noqa: PLC0415 - a machine without Triton can use the eager twin

    return landmark_forward(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)


def _backward(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    out_BHTD: torch.Tensor,
    lse_BHT: torch.Tensor,
    grad_BHTD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from ..landmark_gradient.fused import landmark_backward  # noqa: PLC0415 - as above

    return landmark_backward(q_BHTD, k_BGSD, v_BGSD, out_BHTD, lse_BHT, grad_BHTD, block, scale, start_BS)


FORWARD = torch.library.custom_op(
    "lacuna::landmark_forward",
    _forward,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, int block, float scale, Tensor? start) -> (Tensor, Tensor)",
)
BACKWARD = torch.library.custom_op(
    "lacuna::landmark_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor grad, int block, float scale, Tensor? start)"
    " -> (Tensor, Tensor, Tensor)",
)


@FORWARD.register_fake
def _(q, k, v, block, scale, start):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@BACKWARD.register_fake
def _(q, k, v, out, lse, grad, block, scale, start):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG001
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    q, k, v, ctx.block, ctx.scale, start = inputs
    ctx.save_for_backward(q, k, v, start, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _lse_grad) -> tuple[torch.Tensor | None, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    q, k, v, start, out, lse = ctx.saved_tensors
    return *BACKWARD(q, k, v, out, lse, grad, ctx.block, ctx.scale, start), None, None, None


FORWARD.register_autograd(_differentiate, setup_context=_keep)


def landmark_attention_fused(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with the fused kernels, differentiably.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: Rows of a block, its landmark included; from 2 to 128.
        scale: Factor of the scores; positive.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        (B, H, T, D) in the dtype of the queries.

    Raises:
        ValueError: As the fused twin of `landmark_attention`.
    """
    return FORWARD(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)[0]


def landmark_sdpa(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    block: int,
    scale: float | None = None,
    start_BS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend in place of `scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)`.

    Args:
        q_BHTD: (B, H, T, D) queries of the last T rows.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        block: Rows of a block, its landmark included.
        scale: Factor of the scores; D ** -0.5 if absent.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        (B, H, T, D), differentiable: fused on CUDA up to blocks of 128 rows, else the eager twin.

    Raises:
        ValueError: If shapes do not fit, or the block is too short.
    """
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else scale
    if q_BHTD.is_cuda and block <= 128:
        return landmark_attention_fused(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
    eager = load_op("landmark_attention").eager
    attended: torch.Tensor = eager(q_BHTD, k_BGSD, v_BGSD, block, scale, start_BS)
    return attended
