"""What was asked: a Cell, whose key is a hash of every field that changes the result."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FORMAT = 1
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Spec:
    """A plug-in, by name, version and arguments; `digest` pins its data, `source` only says where that lies."""

    name: str
    version: int = 1
    args: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    source: str = ""

    def __hash__(self) -> int:
        return hash(canonical(self))

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v}" for k, v in self.args.items() if not isinstance(v, Mapping))
        return f"{self.name}({inner})" if inner else self.name


@dataclass(frozen=True)
class Cell:
    """One measurement that somebody wants.

    Attributes:
        prefill: whether the method acts on the prompt's own rows too ("sparse") or only from its end on ("dense").
        query_aware: whether the question is part of the prompt that is prefilled, or is fed after it, row by row.
        needs: (argument of the method or task, key of the Cell whose artifact it takes).
    """

    model: Spec
    method: Spec
    task: Spec
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    ranks: int = 1
    prefill: Literal["dense", "sparse"] = "dense"
    query_aware: bool = False
    seed: int = 0
    needs: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """20 hexadecimal digits; equal for equal questions, whatever the path, partition or host."""
        identity = {"format": FORMAT, **vars(self)}  # not asdict, which copies: plans hold tens of thousands of cells
        for part in ("model", "method", "task"):
            known = {k: v for k, v in vars(identity[part]).items() if k != "source"}
            identity[part] = {**known, "args": _placeless(known["args"])}
        return hashlib.sha256(canonical(identity).encode()).hexdigest()[:20]

    @property
    def group(self) -> tuple[str, str, str, int]:
        """Cells of one group share a model load: (model, dtype, device, ranks)."""
        return (self.model.name + self.model.digest, self.dtype, self.device, self.ranks)

    def __str__(self) -> str:
        return f"{self.model} x {self.method} x {self.task}"

    def __hash__(self) -> int:
        return hash(self.key)

    def to_json(self) -> dict[str, Any]:
        """A plain mapping that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Cell:
        """Inverse of `to_json`."""
        parts = {k: Spec(**raw[k]) for k in ("model", "method", "task")}
        needs = tuple((a, k) for a, k in raw["needs"])
        return cls(**{**raw, **parts, "needs": needs})


def _placeless(value: Any) -> Any:
    """Absolute paths by their last part only: a file's content is pinned by a digest, and its place is no matter."""
    if isinstance(value, Mapping):
        return {k: _placeless(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_placeless(v) for v in value]
    return value.rsplit("/", 1)[-1] if isinstance(value, str) and value.startswith("/") else value


def canonical(value: Any) -> str:
    """JSON with sorted keys and no blanks; equal values give equal text (1 and 1.0 differ: a count and a share)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=asdict, allow_nan=False)
