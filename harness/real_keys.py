"""Queries, keys and values of a model over real text, expanded to any shape that a kernel is timed on.

The model reads windows of prose under dense attention; its keys are kept as they are cached, turned by their position.
A head of the case is made of as many key/value heads of the model, of one layer, as its dims need, side by side; their
keys are rotated into the basis of their principal components (of the rows as they are, not centred), the largest first,
and cut to D. Its rows are window after window, as many as it has. Its query heads are those of the same heads at the
last token of the last of these windows and, where a group has more query heads than the model's, at the tokens before
it. Queries are scaled so that scores are as far apart as the model's, whatever D is.

Shapes: W windows, T tokens of a window, L layers, G key/value heads, J query heads of each, M queries kept, d the head
dimension of the model, B batch, D head dimension of the case, S its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.drawn import Drawn
from ..kernels.op import Case
from ..models.bind import bind
from ..models.call import Call
from ..models.load import load_model
from ..models.memory import Memory
from ..results import plugins
from ..results.cell import Spec
from .task import read_corpus

LAST = 16  # tokens at the end of a window whose queries are kept


@dataclass
class _Kept:
    """An observer: what each layer caches of a window, and its last queries."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)

    def arrived(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Keep."""
        del memory
        self.keys.append(k_BGTD[0])
        self.values.append(v_BGTD[0])

    def attended(self, memory: Memory, call: Call, q_BHTD: Tensor, out_BHTD: Tensor) -> Tensor:
        """Keep the last queries."""
        del call
        groups = memory.keys.view.shape[1]
        self.queries.append(q_BHTD[0, :, -LAST:].unflatten(0, (groups, -1)))
        return out_BHTD


class RealKeys:
    """Draws caches from one model's: a `kernels.drawn.Source`.

    Args:
        spec: the model, as `lacuna.models.load` takes it.
        device: where it runs.
        window: T, at most; the model's whole context if that is less.
        windows: W, at most.
        corpus: what it reads.

    Raises:
        ValueError: the corpus is shorter than a window.
    """

    def __init__(
        self, spec: Spec, device: torch.device, window: int = 4096, windows: int = 32, corpus: str = "prose"
    ) -> None:
        read = self._read(spec, device, window, windows, corpus)
        # keys and values are [W, L, G, T, d], queries [W, L, G, J, M, d]
        self._k, self._v, self._q = (torch.stack(part) for part in zip(*read, strict=True))

    @staticmethod
    @torch.no_grad()
    def _read(
        spec: Spec, device: torch.device, window: int, windows: int, corpus: str
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        model, tokenizer = load_model(spec, "bfloat16" if device.type == "cuda" else "float32", str(device))
        window = min(window, model.config.max_position_embeddings)
        stream = [t for d in read_corpus(corpus) for t in tokenizer(d.text, add_special_tokens=False)["input_ids"]]
        if len(stream) < window:
            raise ValueError(f"{corpus!r} has {len(stream)} tokens, a window has {window}")
        found = []
        for start in range(0, min(len(stream), windows * window) - window + 1, window):
            ids = torch.tensor([stream[start : start + window]], device=device)
            with bind(model, plugins.load("methods", "full")()) as binding:
                binding.observer = kept = _Kept()
                model(ids, past_key_values=binding.cache(), use_cache=True, logits_to_keep=1)
            found.append((torch.stack(kept.keys), torch.stack(kept.values), torch.stack(kept.queries)))
        return found

    def __call__(self, case: Case, device: torch.device, seed: int) -> Drawn:
        """A cache of the case's shape; the seed chooses the windows and heads that it begins with."""
        made = (self._head(case, number + seed) for number in range(case.batch * case.kv_heads))
        cache = torch.empty(
            2, case.batch * case.kv_heads, case.rows, case.head_dim, dtype=case.torch_dtype, device=device
        )
        queries = []
        for place, (q_JD, k_SD, v_SD) in enumerate(made):  # one by one: a cache may fill half of a GPU
            cache[0, place], cache[1, place] = k_SD, v_SD
            queries.append(q_JD.to(device, case.torch_dtype))
        k_BGSD, v_BGSD = cache.unflatten(1, (case.batch, case.kv_heads))
        return Drawn(torch.cat(queries).view(case.batch, case.q_heads, case.head_dim), k_BGSD, v_BGSD)

    def _head(self, case: Case, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """One KV head of the case: its queries [J, D], keys and values [S, D]."""
        windows, layers, heads, tokens, dim = self._k.shape
        side = math.ceil(case.head_dim / dim)
        layer = number % layers
        taken = [(number // layers + more) % heads for more in range(side)]
        read = [(number + more) % windows for more in range(math.ceil(case.rows / tokens))]
        k_SD, v_SD = (
            torch.cat([torch.cat([part[w, layer, head] for head in taken], -1) for w in read])[: case.rows].float()
            for part in (self._k, self._v)
        )
        q_JD = self._queries(read[-1], layer, taken, case.q_heads // case.kv_heads).float()
        basis_DD = torch.linalg.eigh(k_SD.T @ k_SD).eigenvectors.flip(-1)[:, : case.head_dim]
        return q_JD @ basis_DD * (case.head_dim / dim) ** 0.5, k_SD @ basis_DD, v_SD[:, : case.head_dim]

    def _queries(self, window: int, layer: int, taken: list[int], group: int) -> Tensor:
        """[J, D]: the model's own query heads of the last token, then of the tokens before it."""
        q_HJMd = self._q[window, layer]
        own = q_HJMd.shape[1]
        rows = [torch.cat([q_HJMd[head, j % own, -1 - j // own % LAST] for head in taken]) for j in range(group)]
        return torch.stack(rows)
