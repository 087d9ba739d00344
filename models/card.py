"""A trained model as a folder that speaks for itself: weights, tokenizer, card and curve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .load import read_card, write_folder


def export(artifact: Path, folder: Path) -> None:
    """Write what a training yielded as a folder of transformers, with README.md and curve.json.

    Raises:
        ValueError: the file is no trained model, or the folder is not empty.
    """
    card = read_card(artifact)
    write_folder(artifact, folder)
    (folder / "README.md").write_text(text(card, folder.resolve().name), encoding="utf-8")
    (folder / "curve.json").write_text(json.dumps(card["curve"]), encoding="utf-8")


def text(card: Mapping[str, Any], name: str) -> str:
    """The model card: the name of its folder, what it was made of, how, and what came out."""
    args = {name: _own_name(value) for name, value in card["task"]["args"].items()}
    corpus = ", ".join(args["corpus"])
    lines = [
        "---",
        "library_name: transformers",
        "---",
        f"# {name}",
        "",
        f"{card['model']}, {args['attention']} attention.",
        "",
        (
            f"Made by lacuna's task `train`, version {card['task']['version']}, cell `{card['key']}`, "
            f"seed {card['seed']}, {card['dtype']}, {card['ranks']} rank{'s' * (card['ranks'] > 1)}. "
            "`curve.json` is its loss curve."
        ),
        "",
        (
            f"Text: {corpus}; held out: {args['heldout']}; digests `{card['task']['digest']}`. Planted retrieval is "
            "no prose: do not take what the model says for facts."
        ),
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value:.6g} |" for name, value in card["metrics"].items()),
        "",
        "To make it again, `lacuna run` this sweep:",
        "",
        "```yaml",
        f"model: {_begun(card)}",
        "method: full",
        f"dtype: {card['dtype']}",
        f"ranks: {card['ranks']}",
        f"seed: {card['seed']}",
        "task:",
        "  train:",
        *(f"    {name}: {json.dumps(value)}" for name, value in args.items()),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _begun(card: Mapping[str, Any]) -> str:
    """The model that a sweep names to make it again: a shape, or the checkpoint that was gone on with."""
    shape = card["model"].removeprefix("new-")
    return f"{{new: {shape}}}" if shape != card["model"] else f"{{path: {shape}}}  # digest {card['model_digest']}"


def _own_name(value: Any) -> Any:
    """A file's name without the folders that only one machine has."""
    if isinstance(value, list):
        return [_own_name(one) for one in value]
    return value.rsplit("/", 1)[-1] if isinstance(value, str) else value
