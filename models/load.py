"""Load a model and its tokenizer; the only other file that calls transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..results.cell import Spec


def load_model(spec: Spec, dtype: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights from safetensors only; remote code only where the model's file says `trust_remote_code: true`.

    Args:
        spec: `source` is a folder, or `repo@revision` on the Hub.
        dtype: float32, bfloat16 or float16.
        device: cpu or cuda.

    Raises:
        ValueError: the folder or the Hub does not have it.
    """
    place, _, revision = spec.source.partition("@") if not Path(spec.source).is_dir() else (spec.source, "", "")
    trusted = bool(spec.args.get("trust_remote_code", False))
    options = {"revision": revision or None, "trust_remote_code": trusted}
    logging.disable_progress_bar()  # one a rank, between the lines that say what is measured
    logging.set_verbosity_error()  # books are longer than a model's context: they are cut after they are encoded
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=getattr(torch, dtype), use_safetensors=True, attn_implementation="sdpa", **options
        )
    except OSError as error:
        raise ValueError(
            f"model {spec.name} cannot be loaded from {spec.source}: {str(error).splitlines()[0]}"
        ) from error
    model = model.to(torch.device(device))  # type: ignore[arg-type]
    return model.eval(), tokenizer
