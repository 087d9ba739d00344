"""Calibration of Loki: the principal components of the keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ...models.memory import Memory
from ...models.methods.full import Full
from ...results.fields import Data, Within
from ..lm import TOKENS_AT_ONCE, Session
from ..task import Outcome, Task
from ..windows import read_windows


@dataclass(frozen=True)
class Pca(Task):
    """PCA of the keys of each layer and key/value head (Loki, arXiv 2406.02542, section 3), streamed.

    Only a mean and a D x D matrix of squares are kept for each head, in float64 and merged chunk by chunk around their
    means, so nothing is dumped and a mean far from zero costs no digits. Artifact: layer.<i>.basis [G, D, D] (columns
    by falling variance), layer.<i>.variance [G, D] (shares of the variance), layer.<i>.mean [G, D], float32.

    Arguments: `corpus` what to read; `tokens` how many at most; `window` tokens of context; `rotary: post` takes keys
    as they are cached, `rotary: pre` before the rotary embedding (turned back by their position).
    """

    corpus: Annotated[str, Data("harness/data")] = "calibration"
    tokens: Annotated[int, Within(256)] = 16384
    window: Annotated[int, Within(16)] = 1024
    rotary: Literal["pre", "post"] = "post"
    version: ClassVar[int] = 1

    def run(self, session: Session) -> Outcome:
        """Read the corpus under full attention and keep the moments of the keys."""
        watch = Watch(self.rotary)
        windows = read_windows(session, self.corpus, self.tokens, self.window)
        with session.instead(watch):
            for part in windows.split(max(1, TOKENS_AT_ONCE // self.window)):
                session.prefill(part.tolist())
        tensors = self._bases(session, watch.moments)
        rank = {f"rank90_layer{i}": float(_rank90(tensors[f"layer.{i}.variance"])) for i in range(len(watch.moments))}
        return Outcome({"tokens": float(windows.numel()), **rank}, artifact=save(tensors))

    @staticmethod
    def _bases(session: Session, moments: dict[int, Moments]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        heads = session.lm.shard.kv_heads_real
        for layer, mine in sorted(moments.items()):
            everyone = session.lm.world.gather(mine.on_cpu())
            count = everyone[0].count
            mean = torch.cat([m.mean for m in everyone])[:heads]
            spread = torch.cat([m.spread for m in everyone])[:heads]
            # where the model is: a launcher may leave a GPU's host one core, on which many threads wait for each other
            found = torch.linalg.eigh((spread / count).to(session.device))
            variance, basis = (part.cpu() for part in found)
            variance = variance.flip(-1).clamp(min=0)
            tensors[f"layer.{layer}.basis"] = basis.flip(-1).float().contiguous()
            tensors[f"layer.{layer}.variance"] = (variance / variance.sum(-1, keepdim=True)).float().contiguous()
            tensors[f"layer.{layer}.mean"] = mean.float().contiguous()
        return tensors


@dataclass
class Moments:
    """Mean [G, D] and summed squares around it [G, D, D] of so many rows, float64."""

    count: int
    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, keys_BGTD: Tensor) -> Moments:
        """Moments of all rows of a chunk."""
        rows = keys_BGTD.double().transpose(0, 1).flatten(1, 2)
        mean = rows.mean(1)
        around = rows - mean[:, None]
        return cls(rows.shape[1], mean, around.transpose(1, 2) @ around)

    def merge(self, other: Moments) -> Moments:
        """Moments of both together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        apart = other.mean - self.mean
        outer = apart[:, :, None] * apart[:, None, :]
        spread = self.spread + other.spread + outer * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), spread)

    def on_cpu(self) -> Moments:
        """For sending."""
        return Moments(self.count, self.mean.cpu(), self.spread.cpu())


@dataclass(frozen=True)
class Watch(Full):
    """Full attention that notes the keys that pass."""

    rotary: str = "post"
    moments: dict[int, Moments] = field(default_factory=dict)

    def write(self, memory: Memory, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Note, then append."""
        keys = k_BGTD
        if self.rotary == "pre":
            back = -(memory.seen + torch.arange(k_BGTD.shape[2], device=keys.device))
            keys = memory.site.rotate(keys, back.expand(keys.shape[0], -1))
        new = Moments.of(keys)
        old = self.moments.get(memory.site.layer)
        self.moments[memory.site.layer] = new if old is None else old.merge(new)
        super().write(memory, k_BGTD, v_BGTD)


def _rank90(variance_GD: Tensor) -> float:
    """Components for 90% of the variance, mean over heads."""
    return float(((variance_GD.double().cumsum(-1) < 0.9).sum(-1) + 1).double().mean())
