"""KeyDiff: keys unlike the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ...results import rules
from ...results.fields import ByteCount, Keep, RowCount
from ..call import Call
from ..evict import Evict, text
from ..memory import Memory


@dataclass(frozen=True)
class KeyDiff(Evict):
    """The rows whose keys point least along the mean direction of all keys, since distinct keys are attended most.

    KeyDiff: Key Similarity-Based KV Cache Eviction (arXiv 2504.15364). The anchor of a key/value head is the mean of
    its normalised keys; rows with the largest cosine to it go. The prompt is cut once, without looking at queries;
    nothing is protected. A prompt that comes in pieces is cut after each, as the paper does for long ones, so that
    the budget holds on the way. All that is held is read, and grows in decode. The cut reads each key once.

    Arguments: `keep` a share of the prompt, `rows` of each head (the paper's main budget is 8192), or `bytes` that a
    layer holds.
    """

    keep: Keep = None
    rows: RowCount = 8192
    bytes: ByteCount = None
    version: ClassVar[int] = 2
    shape: ClassVar[Literal["direct", "select", "evict"]] = "evict"

    def __post_init__(self) -> None:
        rules.one_budget(self)

    def worth(self, memory: Memory, call: Call, rows_B: Tensor) -> Tensor:
        """Minus the cosine to the anchor."""
        del rows_B
        keys = functional.normalize(memory.keys.view.float(), dim=-1)
        # the anchor's length changes no ranking, so a sum over the text's rows is as good as their mean
        anchor = torch.where(text(memory, call)[..., None], keys, 0.0).sum(2, keepdim=True)
        return -functional.cosine_similarity(keys, anchor, dim=-1)
