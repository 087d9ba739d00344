"""A corpus becomes shards, once for all runs that share text and vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...models.load import tokenizer_json
from ..world import World
from .corpus import documents
from .shards import INDEX, TOKENIZER, Shards, write_shards
from .vocabulary import learn

EXTRA = 2  # the landmark and the control token


@dataclass(frozen=True)
class Text:
    """What to train on.

    Attributes:
        corpora: see `corpus.documents`; `digest` pins their content.
        folder: where folders of shards lie.
    """

    corpora: Sequence[str]
    digest: str
    folder: Path

    def with_new_vocabulary(self, size: int, world: World) -> Shards:
        """Shards under a tokenizer that is learned from the text itself."""
        place = self.folder / _name(self.digest, f"new {size}")
        if world.ranks.rank == 0 and not (place / INDEX).exists():
            known = place / TOKENIZER
            tokenizer = Tokenizer.from_file(str(known)) if known.exists() else learn(documents(self.corpora), size)
            write_shards(documents(self.corpora), tokenizer, place)
        world.gather(None)  # the others wait
        return Shards.open(place)

    def with_tokenizer(self, tokenizer: Any, world: World) -> Shards:
        """Shards under the tokenizer of a model that is there."""
        made = Tokenizer.from_str(tokenizer_json(tokenizer))
        end = tokenizer.eos_token_id
        if end is None:
            raise ValueError("the model's tokenizer has no token that ends a text: training needs one")
        place = self.folder / _name(self.digest, made.to_str())
        if world.ranks.rank == 0 and not (place / INDEX).exists():
            write_shards(documents(self.corpora), made, place, end=end)
        world.gather(None)
        return Shards.open(place, made)


def _name(digest: str, vocabulary: str) -> str:
    return hashlib.sha256(f"{digest}\n{vocabulary}".encode()).hexdigest()[:16]
