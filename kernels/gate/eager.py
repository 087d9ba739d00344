"""The gated product of an MLP, in plain torch.

Shape legend: B batch, F inner size.
"""

import torch


def gate(gate_BF: torch.Tensor, up_BF: torch.Tensor) -> torch.Tensor:
    """Multiply silu(gate) by up, rounded once.

    Args:
        gate_BF: (B, F).
        up_BF: (B, F).

    Returns:
        (B, F).
    """
    wide = torch.promote_types(gate_BF.dtype, torch.float32)
    return (torch.nn.functional.silu(gate_BF.to(wide)) * up_BF.to(wide)).to(gate_BF.dtype)
