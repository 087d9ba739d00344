"""Tokens of a corpus in memory-mapped shards with checksums; documents stay apart, and work that was cut off goes on.

A folder holds `tokenizer.json`, `00000.tokens`, `00000.ends`, ... and `index.json`. Tokens are little-endian uint16
(uint32 where the vocabulary needs it); `.ends` holds where each of the shard's documents ends, as uint64. A document
ends with the vocabulary's END, and none lies in two shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...results.store import write_atomically

SHARD_TOKENS = 16_000_000
CHARACTERS_AT_ONCE = 16_000_000
INDEX, TOKENIZER = "index.json", "tokenizer.json"
Tokens = NDArray[np.unsignedinteger[Any]]


def write_shards(
    texts: Iterable[str], tokenizer: Tokenizer, folder: Path, shard_tokens: int = SHARD_TOKENS, end: int = 0
) -> None:
    """Encode documents into shards; shards that a run before this one finished are kept, not made again.

    At no time more than one shard and some documents are in memory. The index is written last: a folder without it is
    unfinished. What is written depends only on the texts, the tokenizer, `shard_tokens` and `end`, the token after each
    document (in a vocabulary of our own END is token 0).

    Raises:
        ValueError: the folder was begun with another tokenizer or size, or there is no text.
    """
    plan = {"shard_tokens": shard_tokens, "end": end, "tokenizer": _sha(tokenizer.to_str().encode())}
    _begin(folder, plan, tokenizer)
    done = _finished(folder)
    kind = "<u2" if tokenizer.get_vocab_size() <= 2**16 else "<u4"
    for number, group in enumerate(_groups(_encoded(texts, tokenizer, end, done), shard_tokens)):
        if number >= len(done):
            _write(folder, number, group, kind)
            done = _finished(folder)
    if not done:
        raise ValueError("the corpus has no text: nothing to train on")
    whole = {**plan, "kind": kind, "vocabulary": tokenizer.get_vocab_size(), "shards": done}
    write_atomically(folder / INDEX, json.dumps(whole, indent=1).encode())


def _begin(folder: Path, plan: dict[str, Any], tokenizer: Tokenizer) -> None:
    path = folder / "plan.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != plan:
        raise ValueError(f"{folder} was begun with another tokenizer or shard size: take another folder")
    if not path.exists():
        write_atomically(folder / TOKENIZER, tokenizer.to_str().encode())
        write_atomically(path, json.dumps(plan).encode())


def _finished(folder: Path) -> list[dict[str, Any]]:
    """What the shards that are whole say of themselves, in order."""
    found: list[dict[str, Any]] = []
    while (path := folder / f"{len(found):05d}.json").exists():
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def _encoded(texts: Iterable[str], tokenizer: Tokenizer, end: int, done: Sequence[dict[str, Any]]) -> Iterator[Any]:
    """Each document's tokens; those of finished shards are only counted off, not encoded."""
    lengths = [n for shard in done for n in shard["lengths"]]
    left = iter(texts)
    yield from (_Skipped(length) for length, _ in zip(lengths, left, strict=False))
    for some in _together(left):
        for encoding in tokenizer.encode_batch(some, add_special_tokens=False):  # on as many threads as there are cores
            yield np.array([*encoding.ids, end], np.uint32)


def _together(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents that are encoded side by side."""
    some: list[str] = []
    for text in texts:
        some.append(text)
        if sum(map(len, some)) > CHARACTERS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some


@dataclass(frozen=True)
class _Skipped:
    """Stands for a document that a finished shard holds."""

    length: int

    def __len__(self) -> int:
        return self.length


def _groups(encoded: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Documents that go into one shard together."""
    group: list[Any] = []
    held = 0
    for document in encoded:
        if group and held + len(document) > most:
            yield group
            group, held = [], 0
        group.append(document)
        held += len(document)
    if group:
        yield group


def _write(folder: Path, number: int, group: list[Any], kind: str) -> None:
    lengths = [len(d) for d in group]
    tokens = np.concatenate(group).astype(kind).tobytes()
    ends = np.cumsum(lengths, dtype="<u8").tobytes()
    write_atomically(folder / f"{number:05d}.tokens", tokens)
    write_atomically(folder / f"{number:05d}.ends", ends)
    said = {"documents": len(group), "tokens": sum(lengths), "lengths": lengths}
    said |= {"tokens_sha256": _sha(tokens), "ends_sha256": _sha(ends)}
    write_atomically(folder / f"{number:05d}.json", json.dumps(said).encode())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Shards:
    """Tokens of a finished folder, mapped into memory.

    Attributes:
        tokens: of each shard.
        starts: where each document begins, counted over all shards; one more than there are documents.
        first: where each shard begins, counted over all shards; one more than there are shards.
    """

    tokenizer: Tokenizer
    tokens: tuple[Tokens, ...]
    starts: NDArray[np.int64]
    first: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer | None = None) -> Shards:
        """Map a folder, every checksum compared.

        Raises:
            ValueError: unfinished, damaged, or made with another tokenizer than the one given.
        """
        if not (folder / INDEX).exists():
            raise ValueError(f"{folder} holds no finished shards: its {INDEX} is missing")
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        made_with = (folder / TOKENIZER).read_text(encoding="utf-8")
        if _sha(made_with.encode()) != index["tokenizer"]:
            raise ValueError(f"{folder / TOKENIZER} is damaged: delete the folder and prepare the text again")
        if tokenizer is not None and _sha(tokenizer.to_str().encode()) != index["tokenizer"]:
            raise ValueError(
                f"the shards in {folder} have another vocabulary ({index['vocabulary']} tokens) than the model "
                f"({tokenizer.get_vocab_size()}): prepare the text with the model's tokenizer"
            )
        parts = [_mapped(folder, number, shard, index["kind"]) for number, shard in enumerate(index["shards"])]
        first = np.cumsum([0, *(len(tokens) for tokens, _ in parts)], dtype=np.int64)
        ends = [ends.astype(np.int64) + offset for (_, ends), offset in zip(parts, first[:-1], strict=True)]
        starts = np.concatenate([np.zeros(1, np.int64), *ends])
        return cls(Tokenizer.from_str(made_with), tuple(tokens for tokens, _ in parts), starts, first)

    @property
    def total(self) -> int:
        """Tokens of all documents."""
        return int(self.first[-1])

    def take(self, start: int, length: int) -> Tokens:
        """Tokens from `start` on, all of one shard."""
        shard = int(np.searchsorted(self.first, start, side="right")) - 1
        at = start - int(self.first[shard])
        return self.tokens[shard][at : at + length]


def _mapped(folder: Path, number: int, said: dict[str, Any], kind: str) -> tuple[Tokens, Tokens]:
    paths = [folder / f"{number:05d}.{part}" for part in ("tokens", "ends")]
    for path, want in zip(paths, (said["tokens_sha256"], said["ends_sha256"]), strict=True):
        if not path.exists() or _file_sha(path) != want:
            raise ValueError(f"{path} is damaged: its checksum is not the index's; delete the folder, prepare it again")
    return np.memmap(paths[0], dtype=kind, mode="r"), np.fromfile(paths[1], dtype="<u8")


def _file_sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
