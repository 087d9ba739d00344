"""Proof, in the process that is timed, that what is timed computes what it should: each op of a step against float64.

Shapes: B texts.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..kernels.op import Op, watched
from ..kernels.verify import Verdict, weigh


@dataclass
class Parity:
    """What was checked.

    Attributes:
        verdicts: of each call of an op, on the first text of the batch, with the cache and the query that it met.
        replay: whether a replayed step gave the bits of the same step made eagerly; None where nothing is replayed.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    replay: bool | None = None

    @property
    def complaint(self) -> str:
        """Why what is timed is not to be believed; empty if it is."""
        failed = [v for v in self.verdicts if not v.passed]
        if failed:
            first = f"{failed[0].op}: {failed[0].reason}"
            return f"{len(failed)} of {len(self.verdicts)} calls of ops failed verification, first {first}"
        if self.replay is False:
            return "a replayed step gave other logits than the same step made eagerly"
        return "" if self.verdicts else "no op ran in a step: nothing was verified"

    @property
    def digest(self) -> str:
        """Of all that was checked: a number can be traced to its proof."""
        lines = [f"{v.op} {v.device} {v.dtype} {v.fused_error!r} {v.eager_error!r} {v.passed}" for v in self.verdicts]
        return hashlib.sha256("\n".join([*lines, f"replay {self.replay}"]).encode()).hexdigest()[:16]

    def sample(self) -> dict[str, Any]:
        """For the record."""
        calls = {op: sum(v.op == op for v in self.verdicts) for op in sorted({v.op for v in self.verdicts})}
        return {
            "phase": "parity",
            "digest": self.digest,
            "calls": calls,
            "replay_equals_eager": self.replay,
            "complaint": self.complaint,
        }


@contextmanager
def checked() -> Iterator[Parity]:
    """While it lasts, each call of an op is judged; it runs as it always does, and slowly."""
    parity = Parity()

    def judge(op: Op, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        named = zip(inspect.signature(op.eager).parameters, arguments, strict=False)
        # before the call, which may write into them
        inputs = {name: _first(value) if _by_text(name) else value for name, value in named}
        out = call(*arguments)
        parity.verdicts.append(weigh(op, "decode step", inputs, _first(out)))
        return out

    with watched(judge):
        yield parity


def _by_text(name: str) -> bool:
    """Whether an argument has a part for each text: its shape, at the end of its name, then begins with B."""
    return name.rpartition("_")[2].startswith("B")


def _first(value: Any) -> Any:
    """The first text's part: float64 copies of a whole batch's cache would not fit beside it."""
    if isinstance(value, Tensor):
        return value[:1].clone() if value.ndim else value
    return tuple(map(_first, value)) if isinstance(value, tuple) else value
