"""How a selection is cut."""

from lacuna.kernels.tiling import body_and_rest, select_plan


def test_selections_are_cut_into_powers_of_two():
    """Broken: a width of cache gives a number of warps that Triton refuses on a GPU, or rows that no block holds."""
    for rows in range(1, 40961):
        body, rest = body_and_rest(rows)
        assert body + rest >= rows
        for plan in (select_plan(body, rest, sets, 132) for sets in (1, 640)):
            assert all(not size & (size - 1) for size in (body, rest, plan.num_warps, plan.part_rows))
            assert plan.num_warps <= 32
            assert plan.part_rows < 32768
