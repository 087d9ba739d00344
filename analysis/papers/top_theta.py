"""Top-Theta Attention (arXiv 2502.08363): accuracy and the shares that are kept, and its figures."""

from __future__ import annotations

from ..grids import Column, Grid

FIGURES = (
    "threshold_curves",
    "effective_k",
    "size_factor",
    "v_row_popularity",
    "v_row_union",
    "length_histograms",
    "accuracy_density",
    "accuracy_bytes",
    "calibration_transfer",
    "output_error",
)

TABLES = {
    "top_theta_kept": Grid(
        "Accuracy and what is kept (there: share of causal attention elements, or of V rows for HumanEval; here: "
        "density).",
        ("lm_eval", "humaneval", "needle"),
        (Column("dense", "full"), Column("Top-theta", "top_theta"), Column("top-k", "topk")),
        (
            ("Llama-2-7B ARC-C", ("52.5", "53.0–53.5 @ 0.07–0.10", "52.7–53.3")),
            ("Llama-2-7B ARC-E", ("81.3", "81.1–81.6", "81.1–81.6")),
            ("Llama-3-8B HellaSwag", ("82.1", "81.7 @ 0.08", "81.15")),
            ("Llama-3-8B ARC-C", ("57.95", "57.1–57.4 @ 0.08–0.10", "56.75–57.75")),
            ("Llama-3-8B ARC-E", ("84.7", "84.2–84.9", "–")),
            ("Llama-3-70B ARC-C", ("69.95", "69.95–70.4 @ 0.07", "–")),
            ("Llama-3-70B HellaSwag", ("87.92", "87.87", "–")),
            ("Llama-3-8B HumanEval", ("24.4", "22.5–26 @ 0.1", "–")),
            ("Llama-3-8B-Instruct HumanEval, after softmax", ("50.6", "50.0 @ 0.29; 51.2 @ 0.44", "49.4 @ 0.26")),
            ("Llama-3-8B-Instruct HumanEval, before softmax", ("50.6", "44.5 @ 0.35", "–")),
            ("Llama-3-70B-Instruct HumanEval, after softmax", ("70.7", "69.5 @ 0.23; 70.7 @ 0.38", "–")),
            ("Llama-3-70B-Instruct HumanEval, before softmax", ("70.7", "65.2 @ 0.31", "–")),
        ),
        "read off the plots of its repository, approximate, in per cent (ours: as the task gives them, often shares)",
        shows_density=True,
    ),
}
