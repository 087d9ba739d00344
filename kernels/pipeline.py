"""Loki's decode step as a chain of three operations: score in few dims, choose, attend to what was chosen.

What is chosen are the best K rows, or, with thresholds that were found beforehand, all rows that reach them.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R low-rank dims, K kept rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .op import Case, Inputs, Op, load_op
from .threshold_compact import kth_best, slack
from .verify import Verdict, judge

CHOOSERS = {"loki_pipeline": "select_topk", "loki_theta_pipeline": "threshold_compact"}


@dataclass(frozen=True)
class Pipeline:
    """A cache in Loki's layout, and one query of each sequence.

    Attributes:
        dense: The arguments of dense decode attention over the whole cache.
        low_BGSR: (B, G, S, R) the first columns of the keys, stored apart: contiguous rows read twice as fast.
        chooser: Name of the operation that chooses.
        choice: Its arguments after the scores.
        case: The shape.
    """

    dense: Inputs
    low_BGSR: torch.Tensor
    chooser: str
    choice: Inputs
    case: Case

    @property
    def ops(self) -> tuple[Op, Op, Op]:
        """The three stages."""
        return load_op("lowrank_score"), load_op(self.chooser), load_op("gather_decode")

    def score_inputs(self) -> Inputs:
        """Give the arguments of the first stage."""
        return score_inputs(self.dense, self.low_BGSR, self.case)

    def choose_inputs(self, s_BNS: torch.Tensor) -> Inputs:
        """Give the arguments of the second stage."""
        return {"s_BNS": s_BNS} | self.choice

    def gather_inputs(self, index_BNK: torch.Tensor, count_BN: torch.Tensor) -> Inputs:
        """Give the arguments of the third stage."""
        kept = {name: self.dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")}
        return kept | {"index_BNK": index_BNK, "count_BN": count_BN, "scale": self.dense["scale"]}

    def run(self) -> torch.Tensor:
        """Run the three stages.

        Returns:
            (B, H, D) attention over the chosen rows.
        """
        score, choose, gather = self.ops
        s_BNS = score(*self.score_inputs().values())
        index_BNK, count_BN = choose(*self.choose_inputs(s_BNS).values())
        out_BHD: torch.Tensor = gather(*self.gather_inputs(index_BNK, count_BN).values())
        return out_BHD

    def verdicts(self) -> Iterator[Verdict]:
        """Verify each stage on what the stages before it, fused, give it.

        Yields:
            One verdict for each stage.
        """
        score, choose, gather = self.ops
        yield judge(score, self.case, self.score_inputs())
        choose_inputs = self.choose_inputs(score.fused(**self.score_inputs()))
        yield judge(choose, self.case, choose_inputs)
        yield judge(gather, self.case, self.gather_inputs(*choose.fused(**choose_inputs)))


def score_inputs(dense: Inputs, low_BGSR: torch.Tensor, case: Case) -> Inputs:
    """Give the arguments of the scores.

    Args:
        dense: The arguments of dense decode attention.
        low_BGSR: (B, G, S, R) the first columns of the keys.
        case: The shape.

    Returns:
        The arguments of `lowrank_score`.
    """
    bounds = {name: dense[name] for name in ("lo_B", "hi_B")}
    return {"q_BHR": dense["q_BHD"][..., : case.low_dims], "k_BGSR": low_BGSR} | bounds | {"reduce": case.reduce}


def make_pipeline(case: Case, device: torch.device, seed: int, name: str = "loki_pipeline") -> Pipeline:
    """Draw a cache in Loki's layout.

    Args:
        case: The shape.
        device: Where the tensors live.
        seed: Of the draw.
        name: "loki_pipeline" or "loki_theta_pipeline"; the thresholds of the second are those that K rows pass.

    Returns:
        The pipeline.
    """
    dense = load_op("dense_decode").make(case, device, seed)
    low_BGSR = dense["k_BGSD"][..., : case.low_dims].contiguous()
    if name == "loki_pipeline":
        choice = {"k_B": torch.full((case.batch,), case.kept, dtype=torch.int32, device=device), "width": case.kept}
    else:
        s_BNS = load_op("lowrank_score")(*score_inputs(dense, low_BGSR, case).values())
        choice = {"threshold_BN": kth_best(s_BNS, case.kept), "width": slack(case.kept)}
    return Pipeline(dense, low_BGSR, CHOOSERS[name], choice, case)


def pipeline_ops(name: str) -> tuple[Op, Op, Op]:
    """Name the stages of a pipeline.

    Args:
        name: "loki_pipeline" or "loki_theta_pipeline".

    Returns:
        The operations.
    """
    return load_op("lowrank_score"), load_op(CHOOSERS[name]), load_op("gather_decode")


def pipeline_bytes(case: Case, name: str = "loki_pipeline") -> int:
    """Add up the fewest bytes of the stages.

    Args:
        case: The shape.
        name: Of the pipeline.

    Returns:
        Bytes.
    """
    return sum(op.bytes(case) for op in pipeline_ops(name))


def pipeline_flops(case: Case, name: str = "loki_pipeline") -> int:
    """Add up the operations of the stages.

    Args:
        case: The shape.
        name: Of the pipeline.

    Returns:
        Floating-point operations.
    """
    return sum(op.flops(case) for op in pipeline_ops(name))
