"""What tuned weights have beyond their base, exactly: for passing them on where the base may not be."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..results.store import write_atomically

BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def write(base: Path, tuned: Path, output: Path) -> None:
    """Write the difference of two folders' weights, bit patterns taken as whole numbers, so that no digit is lost.

    Rows that the base lacks (new tokens) count from zero.

    Raises:
        ValueError: a folder has no weights, or the output is there already.
    """
    if output.exists():
        raise ValueError(f"{output} is there already: nothing is overwritten")
    before, after = _weights(base), _weights(tuned)
    parts = {name: _bits(tensor) - _bits(_fitted(before.get(name), tensor)) for name, tensor in after.items()}
    said = {
        name: {
            "base": _sha(before[name]) if name in before else None,
            "tuned": _sha(tensor),
            "dtype": str(tensor.dtype).removeprefix("torch."),
        }
        for name, tensor in after.items()
    }
    files = {name: (tuned / name).read_text(encoding="utf-8") for name in BESIDE if (tuned / name).exists()}
    about = {"tensors": json.dumps(said), "files": json.dumps(files)}
    write_atomically(output, save({name: part.contiguous() for name, part in parts.items()}, about))


def recover(base: Path, difference: Path, output: Path) -> None:
    """The tuned folder again, every checksum compared.

    Raises:
        ValueError: another base, a damaged difference, or an output folder that is not empty.
    """
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty: take another folder, nothing is overwritten")
    before = _weights(base)
    about, parts = _read(difference)
    if not {"tensors", "files"} <= about.keys():
        raise ValueError(f"{difference} is no difference of weights: `lacuna weights diff` writes them")
    made = {}
    for name, said in json.loads(about["tensors"]).items():
        if (_sha(before[name]) if name in before else None) != said["base"]:
            raise ValueError(f"{base}: {name} is not what the difference was taken from: it needs another base")
        like = parts[name].view(getattr(torch, said["dtype"]))
        made[name] = (parts[name] + _bits(_fitted(before.get(name), like))).view(like.dtype)
        if _sha(made[name]) != said["tuned"]:
            raise ValueError(f"{difference}: {name} does not come out as it was: the file is damaged")
    write_atomically(output / "model.safetensors", save(made, {"format": "pt"}))
    for name, text in json.loads(about["files"]).items():
        if name in BESIDE:  # a name is a path: none but these is written
            write_atomically(output / name, text.encode())


def _weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights: expected *.safetensors")
    return {name: tensor for file in files for name, tensor in _read(file)[1].items()}


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _fitted(before: Tensor | None, after: Tensor) -> Tensor:
    """The base's tensor in the other's dtype and with its rows; zeros where there is none, or it has another shape."""
    fitted = torch.zeros_like(after)
    if before is not None and before.shape[1:] == after.shape[1:] and before.shape[0] <= after.shape[0]:
        fitted[: before.shape[0]] = before.to(after.dtype)
    return fitted


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(BITS[tensor.element_size()])


def _sha(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
