"""Load, make and write a model with its tokenizer; the only other file that calls transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ..results.cell import Spec
from ..results.fields import near

SHAPE: dict[str, Any] = {
    "vocab_size": int,
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "head_dim": int,
    "max_position_embeddings": int,
    "rope_theta": float,
}
TRAINING = "lacuna_training"
FILE_BYTES = 15 * 2**20  # of a checkpoint: repositories and mail bound files, and small ones are fetched side by side


def load_model(spec: Spec, dtype: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights from safetensors only; remote code only where the model's file says `trust_remote_code: true`.

    Args:
        spec: `source` is a folder, `repo@revision` on the Hub, what a training yielded (.safetensors), or the shape of
            a model that is yet to be trained (.json; random weights, and a tokenizer that knows no token).
        dtype: float32, bfloat16 or float16.
        device: cpu or cuda.

    Raises:
        ValueError: the folder or the Hub does not have it.
    """
    place = Path(spec.source)
    with torch.device(device):  # billions of random weights are made where they will be
        made = _shaped(place) if place.suffix == ".json" else None
    if place.suffix == ".safetensors":
        made = read_artifact(place)
    model, tokenizer = made or _pretrained(spec, dtype)
    model = model.to(device=torch.device(device), dtype=getattr(torch, dtype))  # type: ignore[call-arg]
    return model.eval(), tokenizer


def _pretrained(spec: Spec, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    place, _, revision = spec.source.partition("@") if not Path(spec.source).is_dir() else (spec.source, "", "")
    trusted = bool(spec.args.get("trust_remote_code", False))
    options = {"revision": revision or None, "trust_remote_code": trusted}
    logging.disable_progress_bar()  # one a rank, between the lines that say what is measured
    logging.set_verbosity_error()  # books are longer than a model's context: they are cut after they are encoded
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else they are an error without a name
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {spec.name} cannot be loaded from {spec.source}: {why}") from error
    model, found = loaded
    # transformers fills them with random numbers, and says so in a warning
    if lacking := sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])]):
        raise ValueError(
            f"the files of model {spec.name} lack {len(lacking)} of its tensors, {lacking[0]} for one, or have them in "
            f"another shape: fetch {spec.source} again"
        )
    return model, tokenizer


def read_shape(path: Path) -> dict[str, Any]:
    """The sizes of a Llama-shaped model: a JSON file with all keys of SHAPE, and a `text`.

    Raises:
        ValueError: no JSON object, a key is missing, unknown or no number, or the heads do not divide.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no shape: expected a JSON object") from error
    given = {k: v for k, v in raw.items() if k != "text"} if isinstance(raw, dict) else {}
    for key in given.keys() - SHAPE.keys():
        raise ValueError(f"{path}: unknown key {key!r} of a shape: {near(str(key), SHAPE)}")
    for key, kind in SHAPE.items():
        value = given.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not value > 0:
            raise ValueError(f"{path}: {key} is {value!r}, expected a number above 0")
    if given["num_attention_heads"] % given["num_key_value_heads"]:
        raise ValueError(f"{path}: num_key_value_heads does not divide num_attention_heads")
    return given


def _shaped(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Llama of a shape, with tied embeddings and token 0 as the end of a text."""
    given = read_shape(path)
    rope = {"rope_type": "default", "rope_theta": given.pop("rope_theta")}
    config = AutoConfig.for_model(
        "llama", **given, rope_parameters=rope, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model, PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_NOTHING))


_NOTHING = json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}})


def artifact(model: PreTrainedModel, weights: Mapping[str, Tensor], tokenizer: str, card: Mapping[str, Any]) -> bytes:
    """A trained model in one safetensors file: weights; configuration, tokenizer and card as its metadata.

    Args:
        model: whose configuration and ties between weights count.
        weights: by parameter name.
        tokenizer: its JSON.
        card: how it was made, as plain values.
    """
    own = dict(model.named_parameters())  # names a tied weight once
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items() if name in own}
    config = {**model.config.to_dict(), "dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch.")}
    about = {"config": json.dumps(config, sort_keys=True), "tokenizer": tokenizer, "card": json.dumps(card)}
    return save(tensors, about)


def read_artifact(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that `artifact` wrote.

    Raises:
        ValueError: the file is something else.
    """
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if not {"config", "tokenizer"} <= about.keys():
        raise ValueError(f"{path} is no trained model: it has no configuration and tokenizer")
    raw = json.loads(about["config"])
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    missing, unknown = model.load_state_dict(tensors, strict=False)
    absent = set(missing) & dict(model.named_parameters()).keys()
    if absent or unknown:
        raise ValueError(f"{path} lacks or has too much: {', '.join(sorted({*absent, *unknown}))}")
    return model, as_tokenizer(about["tokenizer"])


def as_tokenizer(text: str) -> PreTrainedTokenizerBase:
    """A tokenizer of transformers from the JSON of one of `tokenizers`; its token 0 ends a text."""
    made = Tokenizer.from_str(text)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=made.id_to_token(0))


def tokenizer_json(tokenizer: PreTrainedTokenizerBase) -> str:
    """The JSON that `tokenizers` reads.

    Raises:
        ValueError: the tokenizer is not one of `tokenizers`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{type(tokenizer).__name__} has no fast form: training needs one")
    return str(backend.to_str())


def read_card(path: Path) -> dict[str, Any]:
    """How a trained model was made."""
    with safe_open(path, "pt") as file:
        card = json.loads((file.metadata() or {}).get("card", "{}"))
    return dict(card)


def write_folder(path: Path, folder: Path) -> None:
    """A trained model as an ordinary folder of transformers, in files below 16 MiB.

    Raises:
        ValueError: the folder is there and not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: take another folder, nothing is overwritten")
    logging.disable_progress_bar()
    model, tokenizer = read_artifact(path)
    with safe_open(path, "pt") as file:
        kept = file.get_tensor(next(iter(file.keys()))).dtype
    model.to(kept).save_pretrained(folder, max_shard_size=FILE_BYTES)
    tokenizer.save_pretrained(folder)


@contextmanager
def attending(model: PreTrainedModel, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Another attention function in a model that is being trained; no cache, no mask of transformers' own.

    Args:
        model: any decoder of transformers that uses its attention registry.
        attend: (module, q [B, H, T, D], k [B, G, T, D], v, mask None, scaling, dropout, what `model` was called with
            beside) -> ([B, T, H, D], None).
    """
    before = model.config._attn_implementation  # noqa: SLF001 - there is no public getter
    AttentionInterface.register(TRAINING, attend)
    try:
        model.set_attn_implementation(TRAINING)
        yield
    finally:
        model.set_attn_implementation(before)
