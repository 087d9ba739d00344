"""What analyses see beside a method: every key and value that came by, its output, and the rows that it attended.

Shapes: B windows, H query heads, G key/value heads, N sets of rows chosen (1, G or H), T query rows, S rows held, L
tokens so far, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..models import attend
from ..models.call import Call
from ..models.ledger import Ledger
from ..models.memory import Memory
from ..models.observer import Observer
from .lm import TOKENS_AT_ONCE, Session
from .windows import read_windows


class Everything:
    """Keys and values of every token of each layer, as the model gave them, whatever the method holds of them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Memory, Memory]] = {}

    def arrived(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Append; a memory that was not seen before begins a new text."""
        owner, whole = self._layers.get(memory.site.layer, (None, memory))
        if owner is not memory:
            whole = Memory(memory.site, {})
        whole.append(k_BGTD, v_BGTD)
        self._layers[memory.site.layer] = (memory, whole)

    def of(self, memory: Memory) -> Memory:
        """The whole of what this memory was given."""
        return self._layers[memory.site.layer][1]


class Attended:
    """Tells, for each call of decoded rows, which tokens each of them attended.

    A method that chooses says so itself (`Ledger.chosen`); any other attends what it holds and sees, which is held
    against what the ledger counted.
    """

    def __init__(self, ledger: Ledger, tell: Callable[[Memory, Call, Tensor], None]) -> None:
        self._ledger, self._tell = ledger, tell
        self._chosen: Tensor | None = None
        self._counted = {layer: float(t.attended) for (layer, phase), t in ledger.tallies.items() if phase == "decode"}

    def chosen(self, memory: Memory, call: Call, q_BHTD: Tensor, keep_BNTS: Tensor) -> None:
        """What the ledger calls; rows are told apart by their tokens, before the method moves them."""
        del q_BHTD
        self._chosen = _told(memory, call, keep_BNTS)

    def arrived(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Nothing to note."""

    def attended(self, memory: Memory, call: Call, q_BHTD: Tensor, out_BHTD: Tensor) -> Tensor:
        """Tell of decoded rows.

        Raises:
            ValueError: the method said nothing of its choice, and did not attend all that it holds.
        """
        del q_BHTD
        keep, self._chosen = self._chosen, None
        if call.phase == "decode":
            counted = self._count(memory)
            self._tell(memory, call, self._held(memory, call, counted) if keep is None else keep)
        return out_BHTD

    def _count(self, memory: Memory) -> float:
        """Rows that the ledger counted in this call, of all real heads."""
        layer = memory.site.layer
        total = float(self._ledger.tallies[layer, "decode"].attended)
        before, self._counted[layer] = self._counted.get(layer, 0.0), total
        return total - before

    @staticmethod
    def _held(memory: Memory, call: Call, counted: float) -> Tensor:
        seen = attend.visible_BNTS(memory, call)
        heads = seen.expand(-1, memory.keys.view.shape[1], -1, -1)[:, : memory.live]
        if abs(float(heads.sum()) / memory.copies - counted) > 0.5:  # counts are whole
            raise ValueError("this method does not tell which rows it chose (Ledger.chosen): it cannot be analysed")
        return _told(memory, call, seen)


def _told(memory: Memory, call: Call, keep_BNTS: Tensor) -> Tensor:
    """Rows held as booleans over the tokens so far, [B, N, T, L]; holes (-1) are no token."""
    if memory.columns is None:
        return keep_BNTS
    numbers_BN1S = memory.numbers_BNS(keep_BNTS.shape[0])[:, :, None]
    sets = max(keep_BNTS.shape[1], numbers_BN1S.shape[1])
    numbers_BN1S = numbers_BN1S.repeat_interleave(
        sets // numbers_BN1S.shape[1], 1
    )  # query heads see their group's rows
    keep = (keep_BNTS & (numbers_BN1S >= 0)).expand(-1, sets, -1, -1)
    where = numbers_BN1S.clamp(min=0).expand(keep.shape)
    # added up, since several holes share the place of token 0
    hits = torch.zeros(*keep.shape[:3], int(call.seen), dtype=torch.uint8, device=keep.device)
    return hits.scatter_add_(3, where, keep.byte()).bool()


@contextmanager
def observed_by(session: Session, observer: Observer) -> Iterator[None]:
    """Every call of attention goes past this observer for a while; the ledger tells it of choices, where it listens."""
    session.binding.observer = observer
    session.binding.ledger.watch = observer.chosen if isinstance(observer, Attended) else None
    try:
        yield
    finally:
        session.binding.observer = session.binding.ledger.watch = None


def batches(session: Session, corpus: str, window: int, windows: int, prompt: int) -> Iterator[Tensor]:
    """Windows of a corpus, [B, window], as many at once as fit.

    Raises:
        ValueError: the prompt leaves fewer than two rows to act on, or the corpus is shorter than a window.
    """
    if prompt > window - 2:  # a selection tells of its choice where it is given several rows
        raise ValueError(f"a prompt of {prompt} tokens leaves too few of a window of {window}: make it shorter")
    yield from read_windows(session, corpus, windows * window, window).split(max(1, TOKENS_AT_ONCE // window))


def feed(session: Session, ids_BT: Tensor, prompt: int) -> None:
    """The first tokens as a prompt, the others as rows that the method acts on."""
    session.extend(session.prefill(ids_BT[:, :prompt].tolist()), ids_BT[:, prompt:])


def joined(session: Session, part: Tensor, groups: int, dim: int) -> Tensor:
    """This rank's sets of rows (so many a key/value head) and those of all others, along `dim`, on the CPU.

    Sets of heads that only pad are left out.
    """
    share = part.shape[dim] // groups
    everyone = torch.cat(session.lm.world.gather(part.cpu()), dim)
    real = session.lm.shard.kv_heads_real or everyone.shape[dim] // share
    return everyone.narrow(dim, 0, real * share)


def some_layers(asked: Sequence[int] | None, layers: int, most: int = 3) -> list[int]:
    """The layers asked for, else a few from the first to the last, spread evenly.

    Raises:
        ValueError: the model has no such layer.
    """
    if asked is None:
        return torch.linspace(0, layers - 1, min(most, layers)).round().long().tolist()
    if max(asked) >= layers:
        raise ValueError(f"there is no layer {max(asked)}: this model has {layers}, from 0 to {layers - 1}")
    return sorted(set(asked))
