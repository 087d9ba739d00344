"""Model FLOP/s utilisation: the operations that the model needs, over those that the device could do."""

from __future__ import annotations

from typing import Any

import torch

# dense bf16 without sparsity, from the makers' data sheets
PEAK_FLOP_S = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12}


def flops_per_token(model: Any, length: int) -> float:
    """Forward and backward of a token in a row of so many (PaLM, arXiv 2204.02311, appendix B; attention causal)."""
    config = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    head = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return 6 * (matrices + head) + 6 * config.num_hidden_layers * width * length


def utilisation(model: Any, length: int, tok_s: float, ranks: int) -> float | None:
    """The share that is reached; None for a device that is not in the list."""
    if next(model.parameters()).device.type != "cuda":
        return None
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOP_S.items() if part in name), None)
    return None if peak is None else tok_s * flops_per_token(model, length) / (peak * ranks)
