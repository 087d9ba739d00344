"""Llama-shaped layers in few launches, for single tokens: what lies between the matrix products is one op each.

A decoded token meets thirty small elementwise kernels a layer in a model's own code. Nothing else changes: the
products, the cache and the attention function are the model's.

Shapes: B texts, E hidden size, H query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..kernels.add_norm import OP as ADD_NORM
from ..kernels.gate import OP as GATE
from ..kernels.rotate_rows import OP as ROTATE_ROWS

PARTS = {
    "": {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
Attention = Callable[..., tuple[Tensor, None]]


@contextmanager
def fused_layers(model: Any, attention: Attention) -> Iterator[None]:
    """While it lasts, single tokens pass through fused layers; several at once take the model's own way.

    Args:
        model: in eval mode.
        attention: what the layers call, as the model's attention registry has it.

    Raises:
        ValueError: the layers have other parts than Llama's.
    """
    layers = list(model.base_model.layers)
    for layer in layers:
        _check(model, layer)
    try:
        for layer in layers:
            layer.forward = partial(_forward, layer, layer.forward, attention)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _check(model: Any, layer: nn.Module) -> None:
    for place, parts in PARTS.items():
        found = {name for name, _ in layer.get_submodule(place).named_children()}
        if found != parts:
            odd = ", ".join(sorted(found ^ parts))
            raise ValueError(
                f"{type(model).__name__} has layers of another shape than Llama's ({odd}): they are not fused; "
                "set layers: own"
            )
    act: Any = layer.get_submodule("mlp.act_fn")
    if type(act).__name__ not in ("SiLU", "SiLUActivation"):
        raise ValueError(f"an MLP with {type(act).__name__} is not fused; set layers: own")


def _forward(
    layer: Any, own: Callable[..., Tensor], attention: Attention, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """One layer for one token of each text; x [B, 1, E]."""
    if x.shape[1] != 1:
        return own(x, *args, **kwargs)
    x_BE = x[:, 0]
    normed = layer.input_layernorm(x)
    attended = _attend(layer.self_attn, normed, attention, kwargs["past_key_values"], kwargs["position_embeddings"])
    after = layer.post_attention_layernorm
    normed_BE, x_BE = ADD_NORM(x_BE, attended, after.weight, after.variance_epsilon)
    mlp = layer.mlp
    inner = GATE(mlp.gate_proj(normed_BE), mlp.up_proj(normed_BE))
    return (x_BE + mlp.down_proj(inner))[:, None]


def _attend(module: Any, normed: Tensor, attention: Attention, cache: Any, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Attention of one token, [B, E]."""
    batch, dim = normed.shape[0], module.head_dim
    q, k, v = (project(normed).view(batch, -1, dim) for project in (module.q_proj, module.k_proj, module.v_proj))
    cos, sin = (part[:, 0].expand(batch, -1) for part in turn)
    q, k = ROTATE_ROWS(q, k, cos, sin)
    keys, values = cache.update(k[:, :, None], v[:, :, None], module.layer_idx)
    out, _ = attention(module, q[:, :, None], keys, values, None, scaling=module.scaling)
    return module.o_proj(out.reshape(batch, -1))
