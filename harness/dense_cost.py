"""What dense attention costs in the steps that are timed, and what a method's attention comes to beside it.

Shapes: B texts, G key/value heads of this rank, S rows, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import torch

from ..kernels.clock import captured, sample_ms
from ..kernels.op import Case, load_op
from .lm import Session

ATTENTION = ("score", "select", "gather", "attend", "merge")  # stages; appending is dense attention's too
REPEATS = 20


def dense_attention_ms(session: Session, batch: int, rows: int) -> float | None:
    """Milliseconds of dense decode attention in all layers of this rank, over caches of so many rows.

    One layer is timed with a cold cache, on random rows: dense attention takes as long on any. The model's own cache
    may hold no such rows any more.

    Returns:
        Nothing where they do not fit beside what there is.
    """
    config = session.lm.model.config.get_text_config()
    groups, layers = config.num_key_value_heads, config.num_hidden_layers
    here = -(-groups // session.lm.world.ranks.size)
    heads = config.num_attention_heads // groups * here
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = str(session.lm.model.dtype).removeprefix("torch.")
    op = load_op("dense_decode")
    case = Case("step", batch, heads, here, rows, head_dim=dim, dtype=dtype, visible="full", purpose="time")
    try:
        inputs = op.make(case, session.device, 0)
        call = captured(lambda: op(*inputs.values())) if session.device.type == "cuda" else lambda: op(*inputs.values())
        return layers * median(sample_ms(call, session.device, REPEATS))
    except torch.OutOfMemoryError:
        return None


def against_dense(
    step_ms: float, stages: Mapping[str, float], dense_ms: float, rows: int, gains: Mapping[str, float]
) -> dict[str, float]:
    """Hold a step against the same step with dense attention.

    Args:
        step_ms: of the method.
        stages: milliseconds of its kernels, by stage.
        dense_ms: of dense attention over `rows` rows, all layers.
        rows: that the step sees.
        gains: `ideal_gain`, what bytes allow, and `read_share`, bytes of attention read over those of dense attention.

    Returns:
        `dense_attention_ms`; `gain` over the step with dense attention; `gain_of_ideal`, that over what bytes allow;
        `break_even_tokens`: the context from which on the method is faster, estimated from this one length. What its
        attention takes beyond the time of its bytes, at the rate of dense attention, is taken to be the same at every
        length. It is left out where bytes allow no gain.
    """
    own_ms = sum(stages.get(stage, 0.0) for stage in ATTENTION)
    gain = (step_ms - own_ms + dense_ms) / step_ms
    found = {"dense_attention_ms": dense_ms, "gain": gain, "gain_of_ideal": gain / gains["ideal_gain"]}
    share = gains["read_share"]
    if share < 1:
        fixed_ms = max(0.0, own_ms - share * dense_ms)
        found["break_even_tokens"] = rows * fixed_ms / (dense_ms * (1 - share))
    return found
