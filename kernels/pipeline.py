"""Loki's decode step as a chain of three operations: score in few dims, choose, attend to what was chosen.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R low-rank dims, K kept rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .op import Case, Inputs, load_op
from .verify import Verdict, judge

STAGES = ("lowrank_score", "select_topk", "gather_decode")


@dataclass(frozen=True)
class Pipeline:
    """A cache in Loki's layout, and one query of each sequence.

    Attributes:
        dense: The arguments of dense decode attention over the whole cache.
        low_BGSR: (B, G, S, R) the first columns of the keys, stored apart: contiguous rows read twice as fast.
        k_B: (B,) int32, rows to keep.
        case: The shape.
    """

    dense: Inputs
    low_BGSR: torch.Tensor
    k_B: torch.Tensor
    case: Case

    def score_inputs(self) -> Inputs:
        """Give the arguments of the first stage."""
        return {
            "q_BHR": self.dense["q_BHD"][..., : self.case.low_dims],
            "k_BGSR": self.low_BGSR,
            "lo_B": self.dense["lo_B"],
            "hi_B": self.dense["hi_B"],
            "reduce": self.case.reduce,
        }

    def select_inputs(self, s_BNS: torch.Tensor) -> Inputs:
        """Give the arguments of the second stage."""
        return {"s_BNS": s_BNS, "k_B": self.k_B, "width": self.case.kept}

    def gather_inputs(self, index_BNK: torch.Tensor, count_BN: torch.Tensor) -> Inputs:
        """Give the arguments of the third stage."""
        kept = {name: self.dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")}
        return kept | {"index_BNK": index_BNK, "count_BN": count_BN, "scale": self.dense["scale"]}

    def run(self) -> torch.Tensor:
        """Run the three stages.

        Returns:
            (B, H, D) attention over the chosen rows.
        """
        score, select, gather = (load_op(name) for name in STAGES)
        s_BNS = score(*self.score_inputs().values())
        index_BNK, count_BN = select(*self.select_inputs(s_BNS).values())
        out_BHD: torch.Tensor = gather(*self.gather_inputs(index_BNK, count_BN).values())
        return out_BHD

    def verdicts(self) -> Iterator[Verdict]:
        """Verify each stage on what the stages before it, fused, give it.

        Yields:
            One verdict for each stage.
        """
        score, select, gather = (load_op(name) for name in STAGES)
        yield judge(score, self.case, self.score_inputs())
        select_inputs = self.select_inputs(score.fused(**self.score_inputs()))
        yield judge(select, self.case, select_inputs)
        yield judge(gather, self.case, self.gather_inputs(*select.fused(**select_inputs)))


def make_pipeline(case: Case, device: torch.device, seed: int) -> Pipeline:
    """Draw a cache in Loki's layout.

    Args:
        case: The shape.
        device: Where the tensors live.
        seed: Of the draw.

    Returns:
        The pipeline.
    """
    dense = load_op("dense_decode").make(case, device, seed)
    low_BGSR = dense["k_BGSD"][..., : case.low_dims].contiguous()
    return Pipeline(dense, low_BGSR, torch.full((case.batch,), case.kept, dtype=torch.int32, device=device), case)


def pipeline_bytes(case: Case) -> int:
    """Add up the fewest bytes of the stages.

    Args:
        case: The shape.

    Returns:
        Bytes.
    """
    return sum(load_op(name).bytes(case) for name in STAGES)


def pipeline_flops(case: Case) -> int:
    """Add up the operations of the stages.

    Args:
        case: The shape.

    Returns:
        Floating-point operations.
    """
    return sum(load_op(name).flops(case) for name in STAGES)
