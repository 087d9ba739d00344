"""Tiny random models, and every method that stands in models/methods with arguments that leave gaps at these lengths."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
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

from lacuna.harness.training.kinds import WithLandmarks
from lacuna.harness.training.landmarks import Batch, Landmarks
from lacuna.models.bind import bind
from lacuna.models.load import attending
from lacuna.results import plugins

LAYERS, HEADS, DIM, VOCAB = 2, 4, 16, 97
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HEADS * DIM,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 512,
    # token 0 is in no text of the tests: a method that feeds landmarks finds one, the others do not look
    "lacuna_landmark": {"token": 0, "control": 0, "block": 4, "length": 64, "gated": False},
}
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}),
    "mistral": (MistralConfig, MistralForCausalLM, {"num_key_value_heads": 2, "sliding_window": 20, "head_dim": DIM}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": DIM}),
    "gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM, {}),
}
# so that a new method edits no file of the tests
EXAMPLES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent / "examples").glob("*.yaml"))
}
GAPS = {name: example["gaps"] for name, example in EXAMPLES.items()}
EVERYTHING = {name: example["everything"] for name, example in EXAMPLES.items()}


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
    """Calibrations of a tiny model, in a folder of the test's own."""
    return partial(calibrations, tmp_path)


def calibrations(folder, heads=2, dim=DIM, layers=LAYERS, queries=HEADS):
    """Random orthogonal bases with falling variances, thresholds, and what else methods need; argument -> file."""
    path = folder / f"basis-{heads}-{dim}.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        tensors[f"layer.{layer}.basis"] = torch.linalg.qr(torch.randn(heads, dim, dim, generator=generator)).Q
        shares = torch.rand(heads, dim, generator=generator).sort(-1, descending=True).values
        tensors[f"layer.{layer}.variance"] = shares / shares.sum(-1, keepdim=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return {
        "basis": path,
        "thresholds": thresholds(folder, heads, layers, queries),
        **trained(folder, heads, dim, layers),
    }


def trained(folder, groups, dim, layers):
    """Weights of a hedgehog map, and a state that stands for a prefix."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(groups, *shape, generator=generator)

    learned, states = {}, {}
    for layer in (f"layer.{i}." for i in range(layers)):
        for side in ("query", "key"):
            learned[f"{layer}{side}.matrix"] = torch.eye(dim, 4) + normal(dim, 4) / 8
            learned[f"{layer}{side}.shift"] = normal(1, 4) / 8
        learned[f"{layer}scale"] = normal(1)
        parts = (normal(dim, dim), normal(dim), normal(1) - 3 * math.log(dim / DIM))  # exact rows must still be heard
        states |= {f"{layer}{name}": part for name, part in zip(("values", "norms", "scale"), parts, strict=True)}
    made = {"trained": learned, "state": states}
    paths = {name: folder / f"{name}-{groups}-{dim}.safetensors" for name in made}
    for name, path in paths.items():
        save_file(made[name], path)
    return paths


def thresholds(folder, groups, layers, heads, lengths=(8, 20, 41)):
    """Thresholds of the three signals, low enough that some rows exceed them and some do not."""
    path = folder / f"thresholds-{groups}.safetensors"
    rising = torch.tensor([0.03, 0.02, 0.01])
    tensors = {}
    for layer in range(layers):
        tensors[f"layer.{layer}.lengths"] = torch.tensor(lengths)
        for signal, sets in (("pre", heads), ("post", heads), ("lowrank", groups), ("mass", heads)):
            shift = 0.005 * torch.arange(sets)[:, None]
            tensors[f"layer.{layer}.{signal}"] = rising + shift + (0.3 if signal in ("pre", "mass") else 0)
    save_file(tensors, path)
    return path


def whole_logits(name, model, ids):
    """Logits when nothing is left out: those of the model, or of the attention that the example says it is trained with."""
    if EXAMPLES[name].get("trained_with") != "landmarks":
        return model(ids).logits
    block = model.config.lacuna_landmark["block"]
    kind = Landmarks(model.config.lacuna_landmark["token"], 0, block)
    end = ids.shape[1] // block * block
    rows = Batch(ids[:, :end].numpy(), ids[:, :end].numpy(), ids[:, :end].numpy())
    made = kind.insert(rows, None)
    whole = torch.cat([torch.from_numpy(made.ids), ids[:, end:]], 1)
    marks = torch.cat([torch.from_numpy(made.landmarks), torch.zeros_like(ids[:, end:], dtype=torch.bool)], 1)
    with torch.no_grad(), attending(model, WithLandmarks().attend):
        logits = model(whole, use_cache=False, landmarks=marks).logits
    return logits[~marks].view(*ids.shape, -1)


def make_method(name, args):
    """With the defaults that a sweep would fill in."""
    given = plugins.defaults(plugins.describe("methods", name), args) | args
    return plugins.load("methods", name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


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
