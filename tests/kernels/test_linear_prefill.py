"""Chunked linear attention against the recurrence, row by row."""

import pytest
import torch

from lacuna.kernels.linear_prefill.fused import loaded_of
from lacuna.kernels.many_rows import RowsCase
from lacuna.kernels.op import load_op
from lacuna.kernels.verify import verify

OP = load_op("linear_prefill")
MAPS = {"elu+1": lambda x: torch.nn.functional.elu(x) + 1,
        "taylor": lambda x: torch.cat([torch.ones_like(x[..., :1]), x, (x[..., None] * x[..., None, :]).flatten(-2) / 2**0.5], -1),
        "learned": lambda x: (x @ torch.linspace(-1, 1, 8 * 6, dtype=x.dtype).view(8, 6)).softmax(-1)}  # fmt: skip
BY_ROW = ("q_BHTF", "q_log_BHT", "k_BGTF", "v_BGTD", "log_BGT")
EXACT = ("exact_BHTD", "exact_log_BHT")
STATE = ("state_BGFD", "norm_BGF", "scale_BG")


def inputs_of(phi, rows=150, spread=0.0):
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, heads, rows, 8, dtype=torch.float64) for heads in (4, 2, 2))
    features = phi(k)
    log = spread * torch.randn(2, 2, rows, dtype=torch.float64)
    log[:, :, ::7] = -torch.inf  # no row enters
    state = torch.zeros(2, 2, features.shape[-1], 8, dtype=torch.float64)
    nothing = torch.full((2, 2), -torch.inf, dtype=torch.float64)
    exact, exact_log = torch.randn_like(q), torch.randn(2, 4, rows, dtype=torch.float64)
    exact_log[:, :, ::5] = -torch.inf
    parts = (phi(q), torch.randn_like(exact_log), features, v, log, state, state[..., 0], nothing, exact, exact_log)
    return dict(zip(BY_ROW + STATE + EXACT, parts, strict=True))


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize("phi", MAPS.values(), ids=MAPS)
def test_chunks_are_the_steps(phi, spread):
    """Broken: a prompt read by chunks ends in another state, or gives rows another output, than row by row."""
    inputs = inputs_of(phi, spread=spread)
    found = OP.eager(**inputs)
    state, norm = inputs["state_BGFD"].clone(), inputs["norm_BGF"].clone()
    for t in range(150):
        v = inputs["v_BGTD"][:, :, t]
        k = inputs["k_BGTF"][:, :, t] * inputs["log_BGT"][:, :, t, None].exp()
        state, norm = state + k[..., None] * v[:, :, None], norm + k
        q = inputs["q_BHTF"][:, :, t].unflatten(1, (2, 2))
        factor, weight = inputs["q_log_BHT"][:, :, t].exp(), inputs["exact_log_BHT"][:, :, t].exp()
        total, exact = (q @ norm[..., None]).flatten(1) * factor, inputs["exact_BHTD"][:, :, t]
        joined = (weight[..., None] * exact + (q @ state).flatten(1, 2) * factor[..., None]) / (weight + total)[
            ..., None
        ]
        torch.testing.assert_close(found.out_BHTD[:, :, t], torch.where((total > 0)[..., None], joined, exact))
    factor = found.scale_BG.exp()
    torch.testing.assert_close(found.state_BGFD * factor[..., None, None], state)
    torch.testing.assert_close(found.norm_BGF * factor[..., None], norm)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_a_prompt_in_two_parts_is_one_prompt(twin, device):
    """Broken: the state that one part leaves is not what the next part begins with."""
    run = getattr(OP, twin)
    inputs = {name: part.float().to(device) for name, part in inputs_of(MAPS["elu+1"], spread=3.0).items()}
    whole = run(**inputs)
    one = run(**inputs | {name: inputs[name][:, :, :90].contiguous() for name in BY_ROW + EXACT})
    left = dict(zip(STATE, one[1:], strict=True))
    two = run(**{name: inputs[name][:, :, 90:].contiguous() for name in BY_ROW + EXACT}, **left)
    torch.testing.assert_close(torch.cat([one.out_BHTD, two.out_BHTD], 2), whole.out_BHTD, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(two[1:], whole[1:], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("twin", ["eager", "fused"])
def test_a_factor_beyond_every_number_changes_no_earlier_row(twin, device):
    """Broken: a row that enters with e^300 makes NaN, or the sums of rows before it sink to zero."""
    run = getattr(OP, twin)
    inputs = {name: part.float().to(device) for name, part in inputs_of(MAPS["elu+1"]).items()}
    want = run(**inputs)
    log = inputs["log_BGT"].clone()
    log[:, :, 100] = 300.0
    found = run(**inputs | {"log_BGT": log})
    torch.testing.assert_close(found.out_BHTD[:, :, :100], want.out_BHTD[:, :, :100])
    value = inputs["v_BGTD"][:, :, 100].repeat_interleave(2, 1)[:, :, None].expand(-1, -1, 50, -1)
    torch.testing.assert_close(found.out_BHTD[:, :, 100:], value)
    assert all(bool(part.isfinite().all()) for part in found[1:])


@pytest.mark.parametrize("case", [case for case in OP.cases if case.purpose == "test"], ids=lambda case: case.name)
def test_twins_agree(case, device):
    """Broken: the fused twin errs more than twice as much as the eager one, or leaves output unwritten."""
    verdict = verify(OP, case, device)
    assert verdict.passed, verdict


def aligned(x, width, fill):
    """The same features, rows so many apart, and what stands between them."""
    whole = x.new_full((*x.shape[:3], width), fill)
    whole[..., : x.shape[3]] = x
    return whole[..., : x.shape[3]]


@pytest.mark.parametrize("width", [16, 48, 50])
def test_what_lies_between_rows_of_features_is_no_part_of_them(width, device):
    """Broken: whole vectors are loaded of rows that begin at multiples of 64 bytes, and NaN behind a row is summed up."""
    inputs = {name: part.float().to(device) for name, part in inputs_of(MAPS["elu+1"], spread=1.0).items()}
    assert inputs["q_BHTF"].shape[3] == 8
    want = OP.fused(**inputs)
    apart = {name: aligned(inputs[name], width, torch.nan) for name in ("q_BHTF", "k_BGTF")}
    for mine, theirs in zip(OP.fused(**inputs | apart), want, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_nothing_is_loaded_beyond_the_end_of_memory(device):
    """Broken: the last row of a tensor that ends with it is read as if others stood behind it."""
    whole = torch.zeros(1, 2, 70, 48, device=device)
    assert loaded_of(whole[..., :33]) == 48
    assert loaded_of(whole[..., :32]) == 32
    assert loaded_of(whole[..., 1:34]) == 33
    assert loaded_of(whole[:, :, :-1, 1:34]) == 48  # a row stands behind the last
    assert loaded_of(whole[..., :33].contiguous()) == 33


def test_dims_and_features_that_fill_no_tile(device):
    """Broken: features beyond the last tile, or rows beyond the last chunk, are added to the sums."""
    verdict = verify(OP, RowsCase("odd", 1, 2, 1, 65, head_dim=24, low_dims=33, dtype="float32"), device)
    assert verdict.passed, verdict


def test_a_long_text_has_more_chunks_than_are_joined_at_once(device):
    """Broken: what stands before the 65th chunk is lost, or counted twice."""
    verdict = verify(OP, RowsCase("long", 1, 1, 1, 4200, head_dim=16, low_dims=8, dtype="float32"), device)
    assert verdict.passed, verdict
