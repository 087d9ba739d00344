"""The choice by summed weights against sorted sums in float64, by one block a set and by many.

Shape legend: B batch, H query heads, G KV heads, J = H / G, S rows in the cache, X parts of a sum, K width.
"""

import math
from collections import Counter
from importlib import import_module

import pytest
import torch

from lacuna.kernels.choose_by_weight import OP as CHOOSE_BY_WEIGHT
from lacuna.kernels.choose_by_weight.fused import WeightPlan, at_once, weight_plan
from lacuna.kernels.op import Case
from lacuna.kernels.sparq_score import OP as SPARQ_SCORE
from lacuna.kernels.verify import judge, poisoned_memory

sample, chosen = (import_module(f"lacuna.kernels.select_topk.{name}.fused") for name in ("sample", "chosen"))
HELD = WeightPlan(512, 0, 4)
HALVES = WeightPlan(512, 512, 4)
TWINS = {"eager": None, "many blocks": None, "one block": HELD, "two halves": HALVES}
each = pytest.mark.parametrize("twin", TWINS)


@pytest.fixture(autouse=True)
def _few_sets(monkeypatch):
    """Without a plan many blocks rank."""
    monkeypatch.setattr("lacuna.kernels.choose_by_weight.fused.multiprocessors", lambda _: 10**6)


def choose(twin, score_BHS, spans, k_B, groups, width, parts=2):
    """The rows that a twin chooses, as a list for each set, and the logs of the sums."""
    lo_B, hi_B, local_B, k_B = (torch.tensor(x, dtype=torch.int32, device=score_BHS.device) for x in (*spans, k_B))
    given = score_BHS, parts_of(score_BHS, parts), lo_B, hi_B, local_B, k_B, groups, width
    with poisoned_memory():
        if twin == "eager":
            index_BGK, count_BG, lse_BH = CHOOSE_BY_WEIGHT.eager(*given)
        else:
            index_BGK, count_BG, lse_BH = CHOOSE_BY_WEIGHT.fused(*given, plan=TWINS[twin])
    valid_BGK = torch.arange(width, device=score_BHS.device) < count_BG[..., None]
    assert bool((index_BGK[~valid_BGK] == -1).all())
    sets = zip(index_BGK.flatten(0, 1).tolist(), count_BG.flatten().tolist(), strict=True)
    return [rows[:count] for rows, count in sets], lse_BH


def parts_of(score_BHS, parts):
    """The largest score of each part of the rows, and the sum of exp(score - it)."""
    found = []
    for score_BHP in score_BHS.tensor_split(min(parts, score_BHS.shape[2]), -1):
        top_BH = score_BHP.amax(-1)
        base_BH = torch.where(top_BH == -math.inf, 0.0, top_BH)
        found.append(torch.stack((top_BH, (score_BHP - base_BH[..., None]).exp().sum(-1)), -1))
    return torch.stack(found, 2)


def scores(shape, spans, device, seed=0):
    """Normal scores, hidden outside of each text's interval."""
    score_BHS = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 9
    for b, (lo, hi) in enumerate(zip(*spans[:2], strict=True)):
        score_BHS[b, :, :lo], score_BHS[b, :, hi:] = -math.inf, -math.inf
    return score_BHS.to(device)


def by_hand(score_BHS, spans, k_B, groups, width):
    """The rows of each set: local ones, then those of the largest sums of weights, in float64."""
    chosen = []
    for b, (lo, hi, local) in enumerate(zip(*spans, strict=True)):
        for score_JS in score_BHS[b].cpu().double().chunk(groups):
            weight_S = score_JS[:, lo:hi].softmax(-1).sum(0).tolist()
            first = max(lo, hi - local)
            order = sorted(range(lo, hi), key=lambda row: (row < first, -weight_S[row - lo] if row < first else 0, row))
            chosen.append(sorted(order[: max(0, min(k_B[b], width))]))
    return chosen


def by_hand_but(score_BHS, k, rows):
    """The k rows of each of two sets among the first `rows`, by weights over all."""
    sums = score_BHS[0].cpu().double().softmax(-1).unflatten(0, (2, -1)).sum(1)
    return [one[:rows].topk(k).indices.tolist() for one in sums]


@each
@pytest.mark.parametrize("rows", [512, 509, 1])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (6, 2), (16, 1)])
def test_rows_are_those_of_the_largest_sums(twin, rows, heads, groups, device):
    """Broken: a head of another set counts, a head weighs by its scores and not its softmax, hidden rows are chosen."""
    spans = [0, rows // 5, rows // 2], [rows, rows - rows // 3, rows // 2], [2, 1, 3]
    k_B, width = [rows // 4 + 1, 7, 5], rows // 4 + 2
    score_BHS = scores((3, heads, rows), spans, device, rows + heads)
    score_BHS += torch.arange(heads, device=device)[:, None] * 3  # no head's scores are another's
    found, lse_BH = choose(twin, score_BHS, spans, k_B, groups, width)
    assert found == by_hand(score_BHS, spans, k_B, groups, width)
    torch.testing.assert_close(lse_BH.double(), score_BHS.double().logsumexp(-1), rtol=1e-6, atol=1e-6)
    assert bool((lse_BH[2] == -math.inf).all()), "nothing is visible"


@each
@pytest.mark.parametrize(("k", "local"), [(0, 4), (3, 9), (9, 9), (40, 0), (500, 3)])
def test_local_rows_come_first_and_the_last_of_them_may_be_left(twin, k, local, device):
    """Broken: more local rows than wanted overflow, none are forced, k = 0 writes a row, or a wish beyond all fails."""
    spans = [3], [203], [local]
    score_BHS = scores((1, 4, 260), spans, device)
    found, _ = choose(twin, score_BHS, spans, [k], 2, 300)
    assert found == by_hand(score_BHS, spans, [k], 2, 300)


@each
@pytest.mark.parametrize("heads", [1, 4])
def test_of_equal_sums_the_lowest_rows_are_chosen(twin, heads, device):
    """Broken: ties are broken otherwise, or ranks that are in registers only are read from where nobody wrote them."""
    score_BHS = torch.zeros(1, heads, 700 if twin != "one block" else 500, device=device)
    score_BHS[..., 50:60], score_BHS[..., 90] = 1.0, -1.0
    rows = score_BHS.shape[2]
    found, _ = choose(twin, score_BHS, ([0], [rows], [2]), [40], 1, 64)
    assert found == [[*range(28), *range(50, 60), rows - 2, rows - 1]]


@each
@pytest.mark.parametrize("excess", [1, 8, 9])
@pytest.mark.parametrize("heads", [1, 4])
def test_of_a_few_equal_sums_the_lowest_rows_are_chosen_too(twin, heads, excess, device):
    """Broken: another row than the last of the equal ones is left out, or one too many, in either half of the rows."""
    size = 700 if twin != "one block" else 500
    score_BHS = torch.linspace(3.0, -3.0, size, device=device).repeat(1, heads, 1)
    tied = torch.cat((torch.arange(3, 33, 6), torch.arange(size - 60, size - 3, 6)))
    score_BHS[..., tied.to(device)] = 4.0
    keep = len(tied) - excess
    found, _ = choose(twin, score_BHS, ([0], [size], [1]), [keep + 1], 1, 64)  # the local row, and so many of these
    assert found == [[*tied[:keep].tolist(), size - 1]]


@each
def test_rows_beyond_the_cache_are_none(twin, device):
    """Broken: an interval that ends beyond the last row chooses rows that are not there."""
    score_BHS = scores((1, 4, 260), ([0], [260], [2]), device)
    found, _ = choose(twin, score_BHS, ([0], [300], [50]), [20], 2, 24)
    assert found == [sorted({*range(250, 260), *one}) for one in by_hand_but(score_BHS, 10, 250)]


@pytest.fixture
def calls(monkeypatch):
    """How often a step of a kernel is taken, by the names of the modules and functions that are watched."""
    if torch.cuda.is_available():
        pytest.skip("steps are counted in the interpreter")
    taken = Counter()

    def watch(module, name):
        step = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: taken.update([name]) or step(*given))

    watch(sample, "shrink")
    watch(chosen, "put_scores")
    return taken


def test_weights_over_many_decades_take_few_steps(calls, device):
    """Broken: guesses lie between weights, or +inf of local rows takes the sample's moments away: nine to twelve steps."""
    spans = [0], [512], [40]
    score_BHS = scores((1, 4, 512), spans, device) * 8.0
    assert choose("one block", score_BHS, spans, [128], 1, 128)[0] == by_hand(score_BHS, spans, [128], 1, 128)
    assert 0 < calls["shrink"] <= 4


@pytest.mark.parametrize(("excess", "written"), [(1, 0), (8, 0), (9, 1)])
def test_a_few_equal_sums_are_not_written_to_be_read_again(excess, written, calls, device):
    """Broken: each choice with two equal weights at its border writes all ranks, and reads them again."""
    score_BHS = torch.linspace(3.0, -3.0, 500, device=device).repeat(1, 2, 1)
    score_BHS[..., 7:400:39] = 4.0
    found, _ = choose("one block", score_BHS, ([0], [500], [0]), [11 - excess], 1, 16)
    assert found == [[*range(7, 400, 39)][: 11 - excess]]
    assert calls["put_scores"] == written


@each
@pytest.mark.parametrize("deviation", [0.01, 10.0])
def test_weights_of_one_size_or_over_many_decades_are_ordered(twin, deviation, device):
    """Broken: guesses between the keys of weights end at another one, or +inf of local rows takes them away."""
    spans = [0, 5], [460, 440], [9, 1]
    score_BHS = scores((2, 4, 460), spans, device, 7) * deviation
    found, _ = choose(twin, score_BHS, spans, [115, 60], 2, 120)
    assert found == by_hand(score_BHS, spans, [115, 60], 2, 120)


@each
def test_weights_that_vanish_are_equal_too(twin, device):
    """Broken: rows whose weights are zero in float32 are not chosen, though more rows are wanted."""
    score_BHS = torch.full((1, 2, 300), -200.0, device=device)
    score_BHS[..., 200] = 0.0
    found, _ = choose(twin, score_BHS, ([10], [290], [1]), [6], 1, 8)
    assert found == [[10, 11, 12, 13, 200, 289]]


@each
def test_sums_that_are_nan_are_never_chosen(twin, device):
    """Broken: a NaN is the largest weight, or spreads to other sets; local rows are all that such a set has."""
    spans = [0, 0], [120, 120], [3, 3]
    score_BHS = scores((2, 4, 120), spans, device)
    want = by_hand(score_BHS, spans, [9, 9], 2, 9)
    score_BHS[1, 2, 17] = math.nan
    found, lse_BH = choose(twin, score_BHS, spans, [9, 9], 2, 9)
    assert found == [*want[:3], [117, 118, 119]]
    assert lse_BH.isnan().nonzero().tolist() == [[1, 2]]


@each
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_any_number_of_parts_says_the_same(twin, parts, device):
    """Broken: parts beyond a power of two are left out, or one without visible rows counts."""
    spans = [210, 0], [260, 20], [1, 1]
    score_BHS = scores((2, 4, 260), spans, device)
    found, lse_BH = choose(twin, score_BHS, spans, [12, 12], 2, 12, parts)
    assert found == by_hand(score_BHS, spans, [12, 12], 2, 12)
    torch.testing.assert_close(lse_BH.double(), score_BHS.double().logsumexp(-1), rtol=1e-6, atol=1e-6)


def test_a_row_of_a_little_less_weight_is_told(device):
    """Broken: weights of many rows are so small that another row, of a thousandth less, passes for the right one."""
    inputs = {"score_BHS": torch.linspace(0.0, -4.0, 4096, device=device).repeat(1, 2, 1)}
    inputs |= {"part_BHX2": parts_of(inputs["score_BHS"], 1), "groups": 1, "width": 16}
    inputs |= {name: torch.tensor([n], dtype=torch.int32, device=device)
               for name, n in {"lo_B": 0, "hi_B": 4096, "local_B": 0, "k_B": 16}.items()}  # fmt: skip
    right = CHOOSE_BY_WEIGHT.eager(**inputs)
    wrong = (right[0].clone(), *right[1:])
    wrong[0][..., -1] = 16  # in place of the row before
    found = [CHOOSE_BY_WEIGHT.compare(inputs, one, right) for one in (right, wrong)]
    assert found[0].error == 0
    assert found[1].error > 100 * torch.finfo(torch.float32).eps * found[1].scale


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("plan", [None, HELD, HALVES], ids=str)
def test_it_follows_the_scores_of_sparq(dim, plan, device):
    """Broken: what `sparq_score` hands on, of any head dim and cut into parts, is taken otherwise."""
    case = Case("odd", 3, 6, 2, 411, head_dim=dim, low_dims=dim // 4, kept=70, dtype="bfloat16")
    inputs = CHOOSE_BY_WEIGHT.make(case, device, dim)
    given = SPARQ_SCORE.make(case, device, dim)
    inputs["score_BHS"], inputs["part_BHX2"] = SPARQ_SCORE.fused(*given.values())
    verdict = judge(CHOOSE_BY_WEIGHT, case, inputs, plan)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("rows", [1, 500, 4096, 4160, 16384, 16448, 32768, 40960])
@pytest.mark.parametrize("sets", [128, 512])
def test_plans_hold_a_set_and_fit_an_sm(rows, sets):
    """Broken: a block has fewer places than rows, threads without four rows, or more registers than an SM has."""
    plan = weight_plan(sets, rows, 132)
    assert plan.body_rows + plan.rest_rows >= rows
    assert all(part % (128 * plan.num_warps) == 0 for part in (plan.body_rows, plan.rest_rows))
    assert plan.registers * 32 * plan.num_warps <= 65536
    assert plan.registers <= (255 if sets == 128 else 128)


def test_one_block_a_set_is_for_sets_that_fill_the_gpu():
    """Broken: a text alone is ranked by eight blocks, or rows that no block can hold are asked of one."""
    assert at_once(128, 16448, 4, 132)
    assert at_once(512, 40960, 1, 132)
    assert not at_once(8, 16384, 4, 132)
    assert not at_once(512, 40961, 1, 132)
    assert not at_once(128, 32832, 4, 132), "sums and scores of one head do not fit into registers together"


def test_scores_of_another_kind_and_no_width_are_refused(device):
    """Broken: the bits of other scores are read as float32, or a launch without places is made."""
    case = Case("small", 1, 4, 2, 96, kept=24)
    inputs = CHOOSE_BY_WEIGHT.make(case, device, 0)
    with pytest.raises(ValueError, match="positive width"):
        CHOOSE_BY_WEIGHT.fused(**inputs | {"width": 0})
    with pytest.raises(ValueError, match="float32 scores"):
        CHOOSE_BY_WEIGHT.fused(**inputs | {"score_BHS": inputs["score_BHS"].half()})
