"""How dense attention is cut.

Shape legend: S rows in the cache, D head dim.
"""

from ..tiling import Plan, attention_plan, fills

# Longer rows were not tried, nor wider items.
ONE_BLOCK_ROWS = 20480


def dense_plan(pairs: int, rows: int, head_dim: int, item_bytes: int, multiprocessor_count: int) -> Plan:
    """Cut dense attention: a block for each pair where these are as many as SMs, or a few less.

    Args:
        pairs: Independent (sequence, head) pairs.
        rows: S.
        head_dim: D.
        item_bytes: Bytes of one element.
        multiprocessor_count: SMs of the GPU.

    Returns:
        The plan.
    """
    plan = attention_plan(pairs, rows, head_dim, item_bytes, multiprocessor_count)
    tried = item_bytes <= 2 and rows <= ONE_BLOCK_ROWS and 16 < plan.block_rows < 128
    if not tried or not fills(pairs, multiprocessor_count):
        return plan
    # Nothing is to be combined, and a block of large tiles streams as fast as two that share an SM.
    return Plan(2 * plan.block_rows, 1, num_warps=4, num_stages=3)
