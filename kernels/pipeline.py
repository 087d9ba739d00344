"""Loki's decode step as a chain of operations: score in few dims, choose, attend to what was chosen.

What is chosen are the best K rows; or, with thresholds that were found beforehand, all rows above them, as soon as they
are scored: the very operations that the methods `loki` and `loki_theta` run for one token.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R low-rank dims, K kept rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .op import Case, Inputs, Op, load_op
from .theta_rows import between_best, segments_of
from .verify import Verdict, judge

STAGES = {
    "loki_pipeline": ("lowrank_score", "select_topk", "gather_decode"),
    "loki_theta_pipeline": ("theta_rows", "gather_decode"),
}


@dataclass(frozen=True)
class Pipeline:
    """A cache in Loki's layout, and one query of each sequence.

    Attributes:
        dense: The arguments of dense decode attention over the whole cache.
        stages: The arguments of each operation before the attention, except those that the one before returns.
        case: The shape.
    """

    dense: Inputs
    stages: dict[str, Inputs]
    case: Case

    def gather_inputs(self, index_BNK: torch.Tensor, count_BN: torch.Tensor, *_: torch.Tensor) -> Inputs:
        """Give the arguments of the last stage; what else it is given corrects its result, in the method."""
        kept = {name: self.dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")}
        return kept | {"index_BNK": index_BNK, "count_BN": count_BN, "scale": self.dense["scale"]}

    def run(self) -> torch.Tensor:
        """Run what a method runs for one token: one operation for the three stages of Loki.

        Returns:
            (B, H, D) attention over the chosen rows.
        """
        if "select_topk" in self.stages:
            out_BHD: torch.Tensor = load_op("topk_decode")(*self.whole_inputs().values())[0]
            return out_BHD
        given: tuple[torch.Tensor, ...] = ()
        for name, inputs in self.stages.items():
            given = as_tuple(load_op(name)(*given, *inputs.values()))
        attended_BHD: torch.Tensor = load_op("gather_decode")(*self.gather_inputs(*given).values())
        return attended_BHD

    def whole_inputs(self) -> Inputs:
        """Give the arguments of the one operation of Loki's three stages.

        Returns:
            Those of `topk_decode`, in order.
        """
        scored, chosen, dense = self.stages["lowrank_score"], self.stages["select_topk"], self.dense
        ranked = {"rank_q_BHR": scored["q_BHR"], "rank_k_BGSR": scored["k_BGSR"]}
        bounds = {name: scored[name] for name in ("lo_B", "hi_B", "reduce")}
        attended = {name: dense[name] for name in ("q_BHD", "k_BGSD", "v_BGSD")}
        chosen = {"wanted_B": chosen["k_B"], "width": chosen["width"]}
        return attended | ranked | bounds | chosen | {"scale": dense["scale"]}

    def verdicts(self) -> Iterator[Verdict]:
        """Verify each stage on what those before it, fused, give it, and what is timed where that is one operation.

        Yields:
            One verdict for each.
        """
        if "select_topk" in self.stages:
            yield judge(load_op("topk_decode"), self.case, self.whole_inputs())
        given: tuple[torch.Tensor, ...] = ()
        for name, inputs in self.stages.items():
            op = load_op(name)
            whole = dict(zip(("s_BNS",), given, strict=False)) | inputs
            yield judge(op, self.case, whole)
            given = as_tuple(op.fused(**whole))
        yield judge(load_op("gather_decode"), self.case, self.gather_inputs(*given))


def as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    """Give what an operation returned as a tuple.

    Args:
        result: A tensor, or several.

    Returns:
        The tensors.
    """
    return (result,) if torch.is_tensor(result) else tuple(result)


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

    Raises:
        ValueError: If sets are not those of KV heads where thresholds choose.
    """
    if name != "loki_pipeline" and case.reduce != "max":
        raise ValueError(f"expected a case with reduce 'max' for thresholds, got {case.reduce!r}")
    dense = load_op("dense_decode").make(case, device, seed)
    low_BGSR = dense["k_BGSD"][..., : case.low_dims].contiguous()
    scored = score_inputs(dense, low_BGSR, case)
    if name == "loki_pipeline":
        k_B = torch.full((case.batch,), case.kept, dtype=torch.int32, device=device)
        return Pipeline(dense, {"lowrank_score": scored, "select_topk": {"k_B": k_B, "width": case.kept}}, case)
    return Pipeline(dense, {"theta_rows": _theta_inputs(scored, dense["scale"], case, device)}, case)


def _theta_inputs(scored: Inputs, scale: float, case: Case, device: torch.device) -> Inputs:
    """The arguments of `theta_rows`: a threshold that K rows exceed, and the bounds of half and twice as many."""
    threshold_BG = between_best(load_op("lowrank_score")(*scored.values()) * scale, case.kept)
    kept_B = torch.full((case.batch,), case.kept, dtype=torch.int32, device=device)
    given = {name: part for name, part in scored.items() if name != "reduce"}
    bounds = {"least_B": kept_B // 2, "most_B": 2 * kept_B, "segments": segments_of(case, device)}
    return given | {"scale": scale, "threshold_BG": threshold_BG} | bounds


def pipeline_ops(name: str) -> tuple[Op, ...]:
    """Name the stages of a pipeline.

    Args:
        name: "loki_pipeline" or "loki_theta_pipeline".

    Returns:
        The operations.
    """
    return tuple(load_op(stage) for stage in STAGES[name])


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
