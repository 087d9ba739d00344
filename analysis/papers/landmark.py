"""Landmark Attention: Random-Access Infinite Context Length (arXiv 2305.16300): tables 1 to 3, and its figures."""

from __future__ import annotations

from ..grids import Column, Grid

FIGURES = (
    "passkey_curve",
    "needle_heatmap",
    "perplexity_budget",
    "accuracy_density",
    "accuracy_bytes",
    "attention_maps",
    "memory_context",
    "decode_time",
)
# k blocks of 50 beside a chunk of 250, as rows
RETRIEVAL = (("2048, k=2", 350, 2048), ("2048, k=4", 450, 2048), ("4096, k=4", 450, 4096))
# the share of blocks dropped as published
CUTOFFS = (("0.0 (0%)", 0.0), ("0.1 (23%)", 0.1), ("0.3 (57%)", 0.3), ("0.5 (84%)", 0.5), ("1.0 (100%)", 1.0))
TABLE_3 = {"rows": 450, "chunk": 250, "blocks": 40, "choose": "row_and_head"}

TABLES = {
    "landmark_passkey": Grid(
        "Passkeys found at 32,070 tokens (appendix G; in per cent). Ours: shares, all lengths of the records together.",
        ("passkey",),
        (Column("full", "full"), Column("landmark", "landmark")),
        (("LLaMA-7B, k=5, 50 prompts", ("fails beyond 2048", "98")),),
        "arXiv 2305.16300, figure 3b and appendix G",
    ),
    "landmark_table1": Grid(
        "Perplexity by evaluation length (table 1: local rows, cached blocks, k, rows attended at most).",
        ("perplexity",),
        (
            *(Column(text, task_args={"corpus": text.lower()}) for text in ("PG19", "arXiv")),
            *(Column(f"ours, {window}", task_args={"window": window}) for window in (360, 512, 2048, 4096)),
        ),
        (
            ("512: dense 512", ("16.12 (v1: 16.32)", "4.01")),
            ("512: dense 360", ("16.76 (v1: 16.80)", "4.31")),
            ("512: landmark 250, 10, 2, 360", ("16.23 (v1: 16.24)", "4.01")),
            ("2048: Transformer-XL 256+256", ("14.72", "–")),
            ("2048: landmark 250, 40, 2, 360", ("15.14", "3.43")),
            ("2048: landmark 350, 40, 2, 460", ("15.07", "3.41")),
            ("2048: landmark 300, 40, 3, 460", ("14.97", "3.36")),
            ("2048: landmark 250, 20, 4, 460", ("15.02", "3.37")),
            ("2048: landmark 250, 40, 4, 460", ("14.92", "3.35")),
            ("4096: Transformer-XL", ("14.55", "–")),
            ("4096: landmark 250, 40, 4, 460", ("14.79", "3.19")),
            ("4096: landmark 250, 80, 2, 370", ("15.00", "3.29")),
            ("4096: landmark 250, 80, 4, 470", ("14.72", "3.18")),
        ),
        "arXiv 2305.16300 (dense rows differ between its versions)",
    ),
    "landmark_table2": Grid(
        "Perplexity by what retrieves a block: each head and token, each head, each token (table 2, PG19).",
        ("perplexity",),
        tuple(
            Column(heading, args={"rows": rows}, task_args={"window": window}) for heading, rows, window in RETRIEVAL
        ),
        (
            ("per head and token", ("15.14", "14.92", "14.72")),
            ("per head", ("15.48", "15.10", "14.95")),
            ("per token", ("15.44", "15.04", "14.89")),
        ),
        "arXiv 2305.16300",
    ),
    "landmark_table3": Grid(
        "Perplexity when retrieved blocks below a cut-off of their weight are dropped (table 3, PG19, 2048, k=4).",
        ("perplexity",),
        tuple(Column(text, "landmark", {**TABLE_3, "cutoff": cutoff}, {"window": 2048}) for text, cutoff in CUTOFFS),
        (
            ("landmark with a control token", ("16.38", "16.38", "16.43", "16.86", "19.49")),
            ("landmark without", ("16.28",)),
        ),
        "arXiv 2305.16300, after 60,000 steps",
        shows_density=True,
    ),
}
