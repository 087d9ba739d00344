"""Tiny random models, and every method that stands in models/methods with arguments that leave gaps at these lengths."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lacuna.models.bind import bind
from lacuna.results import plugins

LAYERS, HEADS, DIM, VOCAB = 2, 4, 16, 97
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HEADS * DIM,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}),
    "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 2, "sliding_window": 20, "head_dim": DIM}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": DIM}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}),
}
# what a method's file alone cannot tell: arguments with which it leaves gaps in texts of some 40 tokens
GAPS = {"streaming_llm": [{"sinks": 2, "window": 6}, {"sinks": 2, "window": 6, "positions": "text"},
                          {"sinks": 2, "window": 6, "positions": "text", "decode": "grow"}],
        "topk": [{"k": 0.25}, {"k": 5}, {"k": 0.25, "heads": "query"}],
        "loki": [{"k": 0.25, "d": 0.5}, {"k": 0.25, "d": None, "variance": 0.6, "heads": "query"}],
        "full": [{}]}  # fmt: skip
EVERYTHING = {
    "streaming_llm": {"sinks": 4, "window": 4000},
    "topk": {"k": 1.0},
    "loki": {"k": 1.0, "d": 0.25},
    "full": {},
}


def make_model(family="llama", seed=0, **changes):
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(**{**COMMON, **own, **changes})
    model = model_class._from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():  # larger weights: attention of a fresh model is too flat for a selection to matter
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "query_key_value.weight")):
                weight.mul_(6)
    return model


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def basis(tmp_path):
    """A calibration of random orthogonal bases with falling variances."""

    def write(heads=2, dim=DIM, layers=LAYERS):
        path = tmp_path / f"basis-{heads}-{dim}.safetensors"
        generator = torch.Generator().manual_seed(1)
        tensors = {}
        for layer in range(layers):
            tensors[f"layer.{layer}.basis"] = torch.linalg.qr(torch.randn(heads, dim, dim, generator=generator)).Q
            shares = torch.rand(heads, dim, generator=generator).sort(-1, descending=True).values
            tensors[f"layer.{layer}.variance"] = shares / shares.sum(-1, keepdim=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        return {"basis": path}

    return write


def make_method(name, args):
    return plugins.load("methods", name)(**args)


def gap_cases():
    return [
        pytest.param(n, a, id=f"{n}-{'-'.join(map(str, a.values()))}")
        for n in plugins.names("methods")
        for a in GAPS[n]
    ]


def tokens(batch, length, seed=3):
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def run_rows(model, method, ids, artifacts, prompt, at_once, prefill="dense", mask=None):
    """Logits of the rows after the prompt, fed at once or one by one, and the binding's ledger."""
    with bind(model, method, artifacts=artifacts, prefill=prefill) as binding:
        cache = binding.cache()
        binding.feeding = "prefill"
        part = None if mask is None else mask[:, :prompt]
        positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
        first = model(ids[:, :prompt], attention_mask=part, past_key_values=cache, use_cache=True,
                      position_ids=None if mask is None else positions[:, :prompt]).logits[:, -1:]  # fmt: skip
        binding.feeding = "decode"
        pieces = [slice(prompt, ids.shape[1])] if at_once else [slice(i, i + 1) for i in range(prompt, ids.shape[1])]
        out = [first]
        for piece in pieces:
            part = None if mask is None else mask[:, : piece.stop]
            where = None if mask is None else positions[:, piece]
            out.append(
                model(
                    ids[:, piece], attention_mask=part, position_ids=where, past_key_values=cache, use_cache=True
                ).logits
            )
        return torch.cat(out, 1), binding.ledger
