"""The shapes on which every operation is tested and timed.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R low-rank dims, K kept rows.
"""

from .op import Case

# Odd lengths, every group size, every head dim: small enough for Triton's interpreter.
TESTED = (
    Case("mha_64", 2, 2, 2, 77, head_dim=64, low_dims=16, kept=19, dtype="float32"),
    Case("gqa3_96", 2, 3, 1, 61, head_dim=96, low_dims=24, kept=33, dtype="float16", reduce="sum"),
    Case("gqa4_128", 2, 8, 2, 131, head_dim=128, low_dims=32, kept=40, dtype="bfloat16"),
    Case("gqa8_256", 1, 8, 1, 45, head_dim=256, low_dims=64, kept=50, dtype="bfloat16", reduce="none"),
    Case("gqa16_128", 1, 16, 1, 37, head_dim=128, low_dims=32, kept=12, dtype="float16"),
    Case("one_row", 1, 4, 2, 1, head_dim=64, low_dims=64, kept=1, dtype="float32", reduce="none"),
)

# Batch, query heads, KV heads, rows, and the part of the dims that scores read and of the rows that are kept.
TIMED_SHAPES = (
    (16, 40, 40, 4096, 4),
    (16, 32, 8, 16384, 4),
    (16, 32, 32, 16384, 4),
    (1, 32, 8, 131072, 4),
    (16, 32, 32, 32768, 8),
)
TIMED = tuple(
    Case(
        f"b{batch}_h{q_heads}_g{kv_heads}_s{rows}",
        batch,
        q_heads,
        kv_heads,
        rows,
        low_dims=128 // part,
        kept=rows // part,
        visible="full",
        purpose="time",
    )
    for batch, q_heads, kv_heads, rows, part in TIMED_SHAPES
)

CASES = TESTED + TIMED
