"""The gradient of landmark attention, by autograd through its eager twin.

Shape legend: B batch, H query heads, G KV heads, T query rows (the last T of the S key rows), S key rows, D head dim.
"""

import torch

from ..landmark_attention.eager import landmark_attention


def landmark_gradient(
    q_BHTD: torch.Tensor,
    k_BGSD: torch.Tensor,
    v_BGSD: torch.Tensor,
    grad_BHTD: torch.Tensor,
    block: int,
    scale: float,
    start_BS: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate `landmark_attention` with respect to queries, keys and values.

    Args:
        q_BHTD: (B, H, T, D) queries.
        k_BGSD: (B, G, S, D) keys.
        v_BGSD: (B, G, S, D) values.
        grad_BHTD: (B, H, T, D) gradient of the output.
        block: Rows of a block, its landmark included.
        scale: Factor of the scores.
        start_BS: (B, S) first row of each row's document, or None.

    Returns:
        The gradients of q, k and v, in their dtypes.

    Raises:
        ValueError: If shapes do not fit, or the block is too short.
    """
    q, k, v = (part.detach().requires_grad_() for part in (q_BHTD, k_BGSD, v_BGSD))
    with torch.enable_grad():
        out_BHTD = landmark_attention(q, k, v, block, scale, start_BS)
    dq, dk, dv = torch.autograd.grad(out_BHTD, (q, k, v), grad_BHTD)
    return dq, dk, dv
