"""Llama-shaped layers in few launches, for single tokens: products are one op each, as is what lies between them.

A decoded token meets thirty small elementwise kernels a layer in a model's own code. The sum that a layer ends with is
left to the norm that follows it, in the next layer or behind the last. Nothing else changes: the weights, the cache and
the attention function are the model's.

Shapes: B texts, E hidden size, H query heads, G key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.add_norm import OP as ADD_NORM
from ..kernels.gate import OP as GATE
from ..kernels.rotate_rows import OP as ROTATE_ROWS
from ..kernels.skinny_linear import OP as SKINNY_LINEAR
from ..kernels.sum_norm import OP as SUM_NORM
from .joined import joined
from .rank_sum import Parts

PARTS = {
    "": {"input_layernorm", "post_attention_layernorm", "self_attn", "mlp"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}
Attention = Callable[..., tuple[Tensor, None]]


@dataclass
class _Stream:
    """What the layer before has still to add to the residual stream, [B, E]; of several ranks perhaps in parts."""

    delta: Tensor | Parts | None = None

    def normed(self, norm: Any, x_BE: Tensor) -> tuple[Tensor, Tensor]:
        """The stream with all that was added, normalised, and as it is."""
        delta, self.delta = self.delta, None
        if isinstance(delta, Parts):
            normed_BE, sum_BE = SUM_NORM(x_BE, norm.weight, norm.variance_epsilon, *delta)
            return normed_BE, sum_BE
        delta_BE = torch.zeros_like(x_BE) if delta is None else delta
        normed_BE, sum_BE = ADD_NORM(x_BE, delta_BE, norm.weight, norm.variance_epsilon)
        return normed_BE, sum_BE


@contextmanager
def fused_layers(model: Any, attention: Attention) -> Iterator[None]:
    """While it lasts, single tokens pass through fused layers; several at once take the model's own way.

    Args:
        model: in eval mode.
        attention: what the layers call, as the model's attention registry has it.

    Raises:
        ValueError: the layers have other parts than Llama's.
    """
    layers, norm, stream = list(model.base_model.layers), model.base_model.norm, _Stream()
    for layer in layers:
        _check(model, layer)
    try:
        for layer in layers:
            layer.forward = partial(_forward, layer, layer.forward, stream, attention)
        norm.forward = partial(_last, norm, norm.forward, stream)
        yield
    finally:
        for changed in (*layers, norm):
            vars(changed).pop("forward", None)


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
    layer: Any, own: Callable[..., Tensor], stream: _Stream, attention: Attention, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """One layer for one token of each text; x [B, 1, E]."""
    if x.shape[1] != 1:
        return own(x, *args, **kwargs)
    normed_BE, x_BE = stream.normed(layer.input_layernorm, x[:, 0])
    stream.delta = _attend(
        layer.self_attn, normed_BE, attention, kwargs["past_key_values"], kwargs["position_embeddings"]
    )
    normed_BE, x_BE = stream.normed(layer.post_attention_layernorm, x_BE)
    mlp = layer.mlp
    stream.delta = _left(mlp.down_proj, GATE(*joined((mlp.gate_proj, mlp.up_proj), normed_BE)), 1)
    return x_BE[:, None]


def _last(norm: Any, own: Callable[[Tensor], Tensor], stream: _Stream, x: Tensor) -> Tensor:
    """The norm behind the last layer, with what that layer adds."""
    return own(x) if stream.delta is None else stream.normed(norm, x[:, 0])[0][:, None]


def _left(projection: Any, x_BF: Tensor, place: int) -> Tensor | Parts:
    """What a projection adds to the stream; several ranks leave the sum to the norm behind it, if they can."""
    late: Callable[[Tensor, int], Tensor | Parts] | None = getattr(projection, "unsummed", None)
    if late is not None:
        return late(x_BF, place)
    plain = type(projection) is nn.Linear  # what is derived of it may compute something else
    whole_BE: Tensor = SKINNY_LINEAR(x_BF, projection.weight, projection.bias) if plain else projection(x_BF)
    return whole_BE


def _attend(
    module: Any, normed_BE: Tensor, attention: Attention, cache: Any, turn: tuple[Tensor, Tensor]
) -> Tensor | Parts:
    """Attention of one token, [B, E]: in one launch up to the cache where the method lets it."""
    batch, dim = normed_BE.shape[0], module.head_dim
    parts = joined((module.q_proj, module.k_proj, module.v_proj), normed_BE)
    q, k, v = (part.view(batch, -1, dim) for part in parts)
    cos, sin = (part[:, 0].expand(batch, -1) for part in turn)
    held, where = cache.layers[module.layer_idx], "memory"
    query = held.land(q, k, v, cos, sin)
    if query is None:
        (query, k), where = ROTATE_ROWS(q, k, cos, sin), "model"
        held.update(k[:, :, None], v[:, :, None])
    out, _ = attention(module, query[:, :, None], held, held, None, scaling=module.scaling, query_in=where)
    return _left(module.o_proj, out.reshape(batch, -1), 0)
