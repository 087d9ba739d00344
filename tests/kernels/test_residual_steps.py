"""The launches of a step beside a linear state, against their definitions in float64.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, F features.
"""

import math
from dataclasses import replace

import pytest
import torch

from lacuna.kernels.linear_decode.fused import Cut, cut_of
from lacuna.kernels.op import load_op
from lacuna.kernels.swap_row.fused import Cut as Search
from lacuna.kernels.swap_row.fused import cut_of as search_of
from lacuna.kernels.verify import judge

both = pytest.mark.parametrize("twin", ["eager", "fused"])
JOIN, MARK, SWAP = (load_op(name) for name in ("linear_decode", "marked_decode", "swap_row"))
TAYLOR = load_op("taylor_features")


@both
@pytest.mark.parametrize("case", [case for case in JOIN.cases if case.purpose == "test"], ids=lambda case: case.name)
def test_a_state_is_joined_as_one_softmax(case, twin, device):
    """Broken: the row that leaves is not in the state that this step reads, or the state weighs other than it should."""
    given = JOIN.make(case, device, 3)
    wide = {name: part.double().cpu() for name, part in given.items()}
    found = getattr(JOIN, twin)(**JOIN.fresh(given))
    factor = wide["k_log_BG"].exp()
    for b in range(case.batch):
        for h in range(case.q_heads):
            g = h * case.kv_heads // case.q_heads
            k = wide["k_BGF"][b, g] * factor[b, g]
            state = wide["state_BGFD"][b, g] * wide["scale_BG"][b, g].exp() + k[:, None] * wide["v_BGD"][b, g]
            norm = wide["norm_BGF"][b, g] * wide["scale_BG"][b, g].exp() + k
            q, a = wide["q_BHF"][b, h] * wide["q_log_BH"][b, h].exp(), wide["exact_log_BH"][b, h].exp()
            total = a + q @ norm
            want = (a * wide["exact_BHD"][b, h] + q @ state) / total if total > 0 else wide["exact_BHD"][b, h]
            torch.testing.assert_close(found.out_BHD[b, h].double().cpu(), want, atol=1e-4, rtol=1e-4)
            held = found.state_BGFD[b, g].double().cpu() * found.scale_BG[b, g].double().cpu().exp()
            torch.testing.assert_close(held, state, atol=1e-3, rtol=1e-4)


@both
def test_nothing_at_all_is_no_nan(twin, device):
    """Broken: minus infinity less minus infinity makes NaN where there is neither state nor exact row."""
    given = JOIN.make(JOIN.cases[0], device, 3)
    for name in ("q_log_BH", "k_log_BG", "scale_BG", "exact_log_BH"):
        given[name].fill_(-torch.inf)
    given["state_BGFD"].zero_()
    given["norm_BGF"].zero_()
    given["k_BGF"].fill_(math.nan)  # of no row that leaves
    found = getattr(JOIN, twin)(**given)
    torch.testing.assert_close(found.out_BHD, given["exact_BHD"])
    assert not found.state_BGFD.any()
    assert bool((found.scale_BG == -torch.inf).all())


@both
def test_a_factor_beyond_every_number_stands_alone(twin, device):
    """Broken: exp of a log beyond 88 is infinite in float32, and joins as NaN."""
    given = JOIN.make(JOIN.cases[0], device, 3)
    given["k_log_BG"].fill_(400.0)
    found = getattr(JOIN, twin)(**given)
    want = given["v_BGD"].repeat_interleave(given["q_BHF"].shape[1] // given["v_BGD"].shape[1], 1)
    torch.testing.assert_close(found.out_BHD, want.float(), atol=1e-4, rtol=1e-4)


@both
@pytest.mark.parametrize(("carry", "sets"), [(1.0, 2), (0.0, 2), (0.0, 1), (0.25, 1)])
def test_weights_stay_as_marks(carry, sets, twin, device):
    """Broken: a mark gains other than its row's weights over the heads of its set, or keeps another part; or a hidden row's changes."""
    case = MARK.cases[2]
    given = MARK.make(case, device, 4) | {"carry": carry, "sets": sets}
    found = getattr(MARK, twin)(**MARK.fresh(given))
    q, k, v, before = (given[name].double().cpu() for name in ("q_BHD", "k_BGSD", "v_BGSD", "marks_BGS"))
    marks = found.marks_BGS.double().cpu()
    for b in range(case.batch):
        seen = slice(int(given["lo_B"][b]), int(given["hi_B"][b]))
        for g in range(case.kv_heads):
            scores = [q[b, 4 * i : 4 * i + 4] @ k[b, i, seen].T * given["scale"] for i in range(2)]
            score, want = scores[g], before[b, g].clone()
            marking = scores if sets == 1 else [score]
            want[seen] = carry * want[seen] + sum(one.softmax(-1).sum(0) for one in marking)
            torch.testing.assert_close(marks[b, g], want, atol=1e-4, rtol=1e-3)
            log = found.log_BH[b, 4 * g : 4 * g + 4].double().cpu()
            torch.testing.assert_close(log, score.logsumexp(-1), atol=1e-4, rtol=1e-4)
            out = found.out_BHD[b, 4 * g : 4 * g + 4].double().cpu()
            torch.testing.assert_close(out, score.softmax(-1) @ v[b, g, seen], atol=2e-2, rtol=0)


@both
def test_marks_that_are_not_kept_may_hold_anything(twin, device):
    """Broken: one step's NaN stays on a row, which then never leaves."""
    given = MARK.make(MARK.cases[2], device, 4) | {"carry": 0.0}
    want = getattr(MARK, twin)(**MARK.fresh(given)).marks_BGS
    lo, hi = int(given["lo_B"][0]), int(given["hi_B"][0])
    given["marks_BGS"][0, :, lo:hi] = torch.tensor([math.nan, math.inf], device=device).repeat(hi)[: hi - lo]
    found = getattr(MARK, twin)(**MARK.fresh(given)).marks_BGS
    assert torch.equal(found[0, :, lo:hi], want[0, :, lo:hi])


@both
def test_the_oldest_of_the_lowest_leaves(twin, device):
    """Broken: a recent row, a hole, a heavier or a younger one leaves, or the new row lands elsewhere."""
    numbers = torch.tensor([[[-1, 4, 0, 7, 2, 9, 5]], [[8, 3, 6, 1, 9, 7, 0]]], device=device)
    marks = torch.tensor([[[0.0, 2, 1e30, 0, 1, 0, 1]], [[0.0, 5, 5, 9, 0, 0, 6]]], device=device)
    given = SWAP.make(SWAP.cases[0], device, 1)
    caches = {name: given[name][:, :1, :7].contiguous() for name in ("keys_BGSD", "values_BGSD")}
    new = {name: given[name][:, :1].contiguous() for name in ("k_BGD", "v_BGD")}
    before = {name: part.clone() for name, part in caches.items()}
    rest = {"number_1": torch.tensor([10], device=device), "recent_B": torch.tensor([4, 3], device=device)}
    found = getattr(SWAP, twin)(**new, **rest, **caches, marks_BGS=marks, numbers_BGS=numbers)
    # Of 0, 2, 4, 5 the lowest marks are those of 2 and 5; of 0, 1, 3, 6, 7 those of 7.
    assert found.slot_BG.tolist() == [[4], [5]]
    for b, slot in ((0, 4), (1, 5)):
        assert torch.equal(found.key_BGD[b, 0], before["keys_BGSD"][b, 0, slot])
        assert torch.equal(found.value_BGD[b, 0], before["values_BGSD"][b, 0, slot])
        assert torch.equal(caches["keys_BGSD"][b, 0, slot], new["k_BGD"][b, 0])
        assert numbers[b, 0, slot] == 10
        assert marks[b, 0, slot] == 0
        others = [i for i in range(7) if i != slot]
        assert torch.equal(caches["values_BGSD"][b, 0, others], before["values_BGSD"][b, 0, others])


@both
def test_new_rows_may_be_parts_of_a_product(twin, device):
    """Broken: a new row that is part of a wider tensor is read as if it lay alone, and another's numbers are kept."""
    given = SWAP.make(SWAP.cases[2], device, 1)
    batch, groups, dim = given["k_BGD"].shape
    wide = torch.randn(batch, 3 * groups * dim, device=device).to(given["k_BGD"].dtype)
    parts = [part.view(batch, groups, dim) for part in wide.split(groups * dim, -1)]
    found, want = (
        getattr(SWAP, twin)(**SWAP.fresh(given | {"k_BGD": lie(parts[1]), "v_BGD": lie(parts[2])}))
        for lie in (torch.Tensor.detach, torch.Tensor.contiguous)
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, want, strict=True))


@both
def test_where_no_row_may_leave_nothing_is_written(twin, device):
    """Broken: a cache of recent rows alone loses one."""
    given = SWAP.make(SWAP.cases[0], device, 1)
    given["recent_B"].fill_(1000)
    before = SWAP.fresh(given)
    found = getattr(SWAP, twin)(**given)
    assert bool((found.slot_BG == -1).all())
    assert all(torch.equal(given[name], before[name]) for name in SWAP.writes)


@both
@pytest.mark.parametrize("case", [case for case in TAYLOR.cases if case.purpose == "test"], ids=lambda case: case.name)
def test_products_of_features_are_the_expansion(case, twin, device):
    """Broken: a pair of components is missing or counted twice, so that products are not 1 + s + s^2 / 2."""
    given = TAYLOR.make(case, device, 2)
    found = getattr(TAYLOR, twin)(**given).double().cpu()
    x, projection = given["x_BGND"].double().cpu(), given["projection_GDW"].double().cpu()
    y = x @ projection if projection.shape[2] else x
    s = y @ y.mT
    torch.testing.assert_close(found @ found.mT, 1 + s + s**2 / 2, atol=1e-3, rtol=1e-3)


def test_however_a_state_is_cut_it_is_the_same(device):
    """Broken: a tile of a state is read after it was written, or one tile too late."""
    cases = [case for case in JOIN.cases if case.purpose == "test"]
    whole = replace(
        cases[0], name="whole_rows", head_dim=128, low_dims=153
    )  # a row of 128 values is one block's, as on a GPU
    for case in (*cases, whole):
        given = JOIN.make(case, device, 4)
        for cut in (Cut(16, 16, 1, 1), Cut(16, 64, 2, 4), Cut(64, 32, 4, 2), cut_of(640, 1, 153, 132)):
            assert judge(JOIN, case, given, cut).passed, (case.name, cut)


def test_few_states_are_cut_narrow_and_long_ones_in_larger_tiles():
    """Broken: eight states of one text are stepped by sixteen blocks, or registers would hold all of a long state."""
    assert cut_of(640, 1, 153, 132).columns == 64
    assert cut_of(8, 4, 153, 132).columns == 32
    # Where each thread has more than 28 times four numbers under way, some do not stay in registers.
    for cut in (cut_of(pairs, 1, features, 132) for pairs in (8, 640) for features in (40, 153, 257, 2145)):
        assert cut.tile * cut.held * cut.columns <= 32 * 4 * 28 * cut.num_warps, cut
    assert cut_of(128, 8, 257, 132).num_warps == 4  # a product's queries are in the registers of all warps


def test_what_is_settled_gives_what_is_new_gives(device):
    """Broken: what is read in another place is not read, or not all of it."""
    for op in (JOIN, SWAP):
        for case in (case for case in op.cases if case.purpose == "test"):
            given = op.make(case, device, 6)
            new, settled = (op.fused(**op.fresh(given), age=age) for age in ("new", "settled"))
            assert all(torch.equal(a, b) for a, b in zip(new, settled, strict=True)), (op.name, case.name)


def test_however_a_head_is_searched_the_same_row_leaves(device):
    """Broken: a part of a head is not searched, or the oldest of equal marks is told from another by its part."""
    for case in (case for case in SWAP.cases if case.purpose == "test"):
        given = SWAP.make(case, device, 4)
        for cut in (Search(1, 16, 1), Search(3, 16, 1), Search(5, 64, 4)):
            assert judge(SWAP, case, given, cut).passed, (case.name, cut)


def test_heads_are_shared_where_they_are_few():
    """Broken: eight heads of a long text are searched by eight blocks while all other SMs idle."""
    assert search_of(512, 16384, 132).splits == search_of(128, 16384, 132).splits == 1
    assert search_of(8, 131072, 132).splits == 16
    assert search_of(8, 100, 132).splits == 1


def test_many_heads_are_searched_by_blocks_of_few_registers():
    """Broken: two blocks fit on an SM where five would, and 640 heads wait for one another."""
    assert {search_of(640, rows, 132) for rows in (2048, 4096, 16384)} == {Search(1, 1024, 8)}
    assert search_of(128, 4096, 132).block > 1024
