"""The only file that knows how attention and caches of Hugging Face models work: it puts a method into one.

Public hooks only: the attention and mask registries, cache layers, forward hooks. The cache layer hands itself to the
attention function instead of tensors, so that a method owns its own layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

from .attend import first_token
from .call import Call, Phase
from .constants import Constants
from .inserted import Feed
from .ledger import Ledger
from .memory import Memory, Site
from .method import Method
from .observer import Observer
from .rotation import Rotation
from .rows import Clock
from .shard import Shard

NAME = "lacuna"


@dataclass
class Binding:
    """A method inside a model, while the context manager lasts.

    Attributes:
        prefill: whether prompt rows are attended densely or by the method; `rotation` is what all caches turn by.
        ledger: what was read and held since the binding began, or since `reset`.
        first: [B] number of the first token of each text that is no padding.
        feeding: the phase of the next calls where somebody says so; else the first call of a cache is the prompt.
        observer: an analysis that sees every call of attention; default none.
        room: rows that the next caches reserve at once.
        clock: of the steps under way, where the cache is pinned.
        feed: the call under way, where the method inserts tokens.
        shared: what its layers may share, by keys of their methods.
        constants: of its layers, made once for all caches.
    """

    model: PreTrainedModel
    method: Method
    shard: Shard
    artifacts: Mapping[str, Path]
    prefill: Literal["dense", "sparse"]
    rotation: Rotation
    ledger: Ledger = field(default_factory=Ledger)
    first: Tensor | None = None
    causal: bool = False
    feeding: Phase | None = None
    observer: Observer | None = None
    room: int = 0
    clock: Clock | None = None
    feed: Feed = field(default_factory=Feed)
    shared: dict[Hashable, Any] = field(default_factory=dict)
    constants: Constants = field(default_factory=Constants)

    @staticmethod
    def memories(cache: Cache) -> list[Memory]:
        """What the layers of a cache remember."""
        return [layer.memory for layer in cache.layers if isinstance(layer, _Layer) and layer.memory]

    def cache(self) -> Cache:
        """A new, empty cache in the method's own layout, for `past_key_values`."""
        count = self.model.config.get_text_config().num_hidden_layers
        return _MethodCache(layers=[_Layer(self, i, count) for i in range(count)])

    def reset(self) -> None:
        """Begin a new count."""
        self.ledger = Ledger()

    def phase(self, memory: Memory, new: int) -> Phase:
        """What the next rows are: a prompt, or rows that the method acts on."""
        if self.feeding is not None:
            return self.feeding
        return "prefill" if memory.seen == new and new > 1 else "decode"

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        """Before the model's forward: give it our cache and note where padding ends."""
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        given = bound.arguments
        cache = given.get("past_key_values")
        if not isinstance(cache, _MethodCache):
            if cache is not None and cache.get_seq_length() > 0:
                raise ValueError("the cache holds tokens that were not written under this method; start without one")
            given["past_key_values"] = self.cache()
        self._note_padding(given)
        self.shared = {}
        self.feed = Feed.into(self.method.inserts(self.model.config), given, self.first)
        extra = given.pop("kwargs", {})
        return (), {**given, **extra}

    def _note_padding(self, given: Mapping[str, Any]) -> None:
        tokens = given.get("input_ids")
        tokens = given["inputs_embeds"] if tokens is None else tokens
        mask = given.get("attention_mask")
        if self.clock is not None and tokens.shape[1] == 1:
            return  # known from the prompt
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        self.causal = not window and (mask is None or mask.ndim == 2)
        if mask is None or mask.ndim != 2:
            self.first = torch.zeros(tokens.shape[0], dtype=torch.long, device=tokens.device)
        elif tokens.shape[1] > 1 or self.first is None:
            self.first = first_token(mask)


class _MethodCache(Cache):
    """Told apart from the caches that `generate` makes by itself."""


class _Layer(CacheLayerMixin):
    """One layer's cache: a Memory, handed to the attention function in place of keys and values."""

    is_sliding = False

    def __init__(self, binding: Binding, layer: int, layers: int) -> None:
        super().__init__()
        self.binding, self.layer, self.layers = binding, layer, layers
        self.memory: Memory | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the memory once shapes, dtype and device are known."""
        del value_states
        binding = self.binding
        site = Site(
            layer=self.layer,
            layers=self.layers,
            kv_heads=binding.shard.heads(key_states.shape[1]),
            kv_heads_real=binding.shard.kv_heads_real or key_states.shape[1],
            head_dim=key_states.shape[3],
            rotate=binding.rotation,
            artifacts=binding.artifacts,
            config=binding.model.config,
        )
        self.memory = Memory(site, binding.constants.of(binding.method, site, key_states), binding.room)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Let the method write the new rows; returns this layer twice."""
        del args, kwargs
        if self.memory is None:
            self.lazy_initialization(key_states, value_states)
        assert self.memory is not None
        self.memory.first = self.binding.first
        feed, every = self.binding.feed, key_states
        key_states, value_states = feed.of_text(key_states), feed.of_text(value_states)
        if self.binding.observer is not None:
            self.binding.observer.arrived(self.memory, key_states, value_states)
        self.binding.method.write(self.memory, key_states, value_states)
        feed.write(self.memory, every)
        return self, self

    def land(self, q_BHD: Tensor, k_BGD: Tensor, v_BGD: Tensor, cos_BD: Tensor, sin_BD: Tensor) -> Tensor | None:
        """Turn and write a single row in one launch; the query as keys are kept, or None where `update` must do it."""
        memory, binding = self.memory, self.binding
        if memory is None or memory.clock is None or binding.observer or binding.feed.kind:
            return None
        memory.first = binding.first
        landing = binding.method.landing(memory)
        return None if landing is None else landing.write(memory, q_BHD, k_BGD, v_BGD, cos_BD, sin_BD)

    def get_seq_length(self) -> int:
        """Tokens seen, evicted ones too: positions go on from there."""
        if self.memory is None:
            return 0
        return self.memory.clock.begun if self.memory.clock else int(self.memory.seen)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks are made over every token seen; `attend` picks the columns of those still held."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No bound."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Forget everything."""
        self.memory, self.is_initialized = None, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """For beam search."""
        if self.memory is not None:
            self.memory.reorder(beam_idx)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    query_in: Literal["model", "memory"] = "model",
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What the model calls: query [B, H, T, D], `key` the cache layer; returns [B, T, H, D].

    `query_in` "memory": the query was brought into the coordinates that keys are kept in, when its row was written.
    """
    del module, value, kwargs
    if dropout:
        raise ValueError("methods act at inference only: call model.eval() first")
    assert isinstance(key, _Layer)
    memory, binding = key.memory, key.binding
    assert memory is not None
    feed, every = binding.feed, query
    query = feed.of_text(query)
    # what pinned steps see is known without a mask; one that is made during a capture has the length of then
    mask = None if memory.clock else feed.mask(attention_mask)
    call = replace(_call(binding, memory, query, mask, scaling), query_in=query_in)
    arrived = None if memory.clock else memory.text_rows_BN(call.first)
    act = call.phase == "decode" or binding.prefill == "sparse"
    attend = binding.method.attend if act else binding.method.attend_dense
    out = feed.attend(attend, every, memory, call, binding.ledger)
    if binding.observer is not None:
        out = feed.instead(out, binding.observer.attended(memory, call, query, feed.of_text(out)))
    memory.end_prompt(call)
    binding.method.settle(memory, call)
    binding.ledger.settle(memory, call, arrived, binding.method.kept)
    if memory.clock is None:  # a captured step is counted at its end
        binding.ledger.hold(memory, call, binding.method.allowance, acted=act)
    memory.settle()
    return out.transpose(1, 2).contiguous(), None


def _call(binding: Binding, memory: Memory, query: Tensor, mask: Tensor | None, scaling: float | None) -> Call:
    assert binding.first is not None
    new = query.shape[2]
    return Call(
        visible=None if mask is None else mask[:, 0],
        causal=binding.causal,
        first=binding.first,
        phase=binding.phase(memory, new),
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        seen=memory.seen,
        new=new,
        query=query,
        clock=memory.clock,
        shared=binding.shared,
        group=query.shape[1] // len(memory.site.kv_heads),
    )


@contextmanager
def bind(
    model: PreTrainedModel,
    method: Method,
    *,
    artifacts: Mapping[str, Path] | None = None,
    prefill: Literal["dense", "sparse"] = "dense",
    shard: Shard | None = None,
) -> Iterator[Binding]:
    """Put a method into any decoder of transformers that uses its attention registry; afterwards the model is itself.

    Args:
        model: in eval mode.
        method: how attention leaves gaps.
        artifacts: argument of the method -> calibration file.
        prefill: whether the first call of more than one row is dense or the method's.
        shard: this rank's heads, from `shard.split`; default all.

    Raises:
        ValueError: the model does not use the registry, or is bound already.
    """
    before = model.config._attn_implementation  # noqa: SLF001 - there is no public getter
    if before == NAME:
        raise ValueError("the model is bound to a method already; leave that context first")
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    binding = Binding(model, method, shard or Shard.whole(), artifacts or {}, prefill, Rotation(model))
    before_it = model.base_model.register_forward_pre_hook(binding.hook, with_kwargs=True)
    after_it = model.base_model.register_forward_hook(lambda _module, _args, output: binding.feed.strip(output))
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:  # noqa: SLF001
            raise ValueError(
                f"{type(model).__name__} does not use transformers' attention registry; methods cannot act"
            )
        with torch.no_grad():
            yield binding
    finally:
        before_it.remove()
        after_it.remove()
        model.set_attn_implementation(before)
