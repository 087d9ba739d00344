"""Loki: Low-rank Keys for Efficient Sparse Attention (arXiv 2406.02542): tables 2, 3, 4 and 6, and its figures."""

from __future__ import annotations

from ..grids import Column, Grid

BUDGETS = ((0.5, 0.5), (0.5, 0.25), (0.25, 0.5), (0.25, 0.25), (0.125, 0.5), (0.125, 0.125))
SCORES = ("lm_eval",)
V1 = "arXiv 2406.02542 version 1"
FIGURES = (
    "rank90_layers",
    "rank_heads",
    "rank_models",
    "eigen_spectra",
    "basis_similarity",
    "calibration_transfer",
    "agreement_layers",
    "agreement_heads",
    "accuracy_density",
    "perplexity_budget",
    "pareto_speed",
    "decode_time",
    "speedup_context",
    "kernel_speedup",
    "stage_breakdown",
    "roofline",
)


def _loki(k: float, d: float, rotary: str) -> Column:
    return Column(f"({k:g}, {d:g})", "loki", {"keep|k": k, "d": d, "basis.rotary": rotary})


def _sparse(heading: str, method: str, k: float) -> Column:
    return Column(heading, method, {"keep|k": k})


TABLES = {
    "loki_table2": Grid(
        "Perplexity at a quarter of the rows (table 2; WikiText-2 there, the records' own texts here).",
        ("perplexity",),
        (
            Column("full", "full"),
            _sparse("exact top-k", "topk", 0.25),
            _sparse("H2O", "h2o", 0.25),
            Column("Loki d=1/4", "loki", {"keep|k": 0.25, "d": 0.25}),
        ),
        (
            ("Llama2-7B", ("5.1101", "5.1809", "5.2810", "5.2017")),
            ("Llama2-13B", ("4.5680", "4.5926", "4.7009", "4.6102")),
            ("Llama3-8B", ("5.5696", "5.5716", "5.7056", "5.6648")),
            ("Mistral-7B", ("4.9140", "4.9171", "5.0805", "4.9233")),
        ),
        f"{V1}, the better rotary type of each model",
    ),
    "loki_table3": Grid(
        "Mean of tasks by (k, d), bases of keys before the rotary embedding (table 3: HellaSwag, TruthfulQA, "
        "WinoGrande, ARC-C, GSM8K, MMLU).",
        SCORES,
        (Column("full", "full"), *(_loki(k, d, "pre") for k, d in BUDGETS)),
        (
            ("Llama2-7B", ("47.67", "47.45", "47.14", "46.04", "43.50", "39.76", "28.98")),
            ("Llama2-13B", ("52.11", "52.28", "52.07", "51.74", "49.67", "46.22", "30.08")),
            ("Llama2-70B", ("63.74", "–", "60.42", "55.88", "50.41", "44.72", "29.87")),
            ("Llama3-8B", ("60.26", "60.18", "57.71", "54.70", "45.58", "43.48", "28.64")),
            ("Llama3-70B", ("71.82", "71.60", "69.55", "68.58", "60.32", "59.00", "30.36")),
            ("TinyLlama", ("36.36", "36.19", "36.23", "35.62", "33.82", "33.38", "29.96")),
            ("Mistral-7B", ("58.30", "58.26", "57.60", "56.04", "52.63", "47.96", "30.12")),
            ("Mixtral-8x7B", ("65.81", "65.26", "65.10", "63.89", "57.17", "54.49", "31.77")),
        ),
        f"{V1}, in per cent (ours: as the task gives them); 13B under full is printed as 52.11 and as 52.78",
        average=True,
    ),
    "loki_table4": Grid(
        "Mean of tasks by (k, d), bases of keys after the rotary embedding (table 4).",
        SCORES,
        tuple(_loki(k, d, "post") for k, d in ((0.5, 0.5), (0.25, 0.5), (0.25, 0.25), (0.125, 0.5))),
        (
            ("Llama2-7B", ("47.58", "44.63", "42.28", "39.76")),
            ("Llama2-13B", ("52.28", "51.74", "49.67", "46.22")),
            ("Llama2-70B", ("62.69", "60.06", "58.56", "50.20")),
            ("Llama3-8B", ("56.77", "46.97", "40.52", "37.97")),
            ("Llama3-70B", ("68.46", "59.00", "48.98", "47.72")),
            ("TinyLlama", ("35.87", "34.26", "32.51", "31.70")),
            ("Mistral-7B", ("56.31", "46.22", "34.66", "34.26")),
            ("Mixtral-8x7B", ("64.51", "59.69", "47.37", "50.76")),
        ),
        f"{V1}, in per cent (ours: as the task gives them); several rows are equal in its tables 3 and 4",
        average=True,
    ),
    "loki_table6": Grid(
        "Perplexity where only d dimensions of the keys are kept (PCAAttn, table 6), beside methods that keep rows.",
        ("perplexity",),
        (
            Column("full", "full"),
            Column("PCAAttn d=1/2", "pca_attn", {"d": 0.5}),
            Column("PCAAttn d=1/4", "pca_attn", {"d": 0.25}),
            _sparse("H2O 1/2", "h2o", 0.5),
            _sparse("H2O 1/4", "h2o", 0.25),
            _sparse("exact top-k 1/2", "topk", 0.5),
            _sparse("exact top-k 1/4", "topk", 0.25),
        ),
        (
            ("Llama2-7B", ("5.1102", "38.40", "243.26", "5.1456", "5.2809", "5.1191", "5.1799")),
            ("Mistral-7B", ("4.914", "396.9", "933.6", "4.9560", "5.0805", "4.9143", "4.9170")),
        ),
        V1,
    ),
}
