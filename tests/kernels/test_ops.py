"""Both twins of every operation against their definitions.

Shape legend: B batch, H query heads, G KV heads, S rows in the cache, D head dim, R dims, N sets of rows, K kept.
"""

import importlib.util
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lacuna.kernels.op import DTYPES, Case, load_op
from lacuna.kernels.tiling import Plan
from lacuna.kernels.verify import poisoned_memory, verify
from lacuna.results import plugins

SPEC = importlib.util.spec_from_file_location("definitions", Path(__file__).with_name("definitions.py"))
definitions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(definitions)

# those of decoding: an op of another shape of case has tests of its own
OPS = tuple(name for name in plugins.names("ops") if type(load_op(name).cases[0]) is Case)
NAN = float("nan")
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
SHAPES = (
    Case("gqa1", 2, 2, 2, 67, head_dim=64, low_dims=16, kept=21, reduce="none"),
    Case("gqa3", 1, 6, 2, 45, head_dim=96, low_dims=24, kept=13, reduce="sum"),
    Case("gqa4", 2, 8, 2, 131, head_dim=128, low_dims=40, kept=33, reduce="max"),
    Case("gqa8", 1, 8, 1, 33, head_dim=256, low_dims=256, kept=9, reduce="none"),
)


def inputs_of(name, case, device, dtype="float32", seed=0):
    return load_op(name).make(replace(case, dtype=dtype), device, seed)


def twins(name):
    op = load_op(name)
    return {"eager": op.eager, "fused": op.fused}


def run(name, twin, inputs, **how):
    with poisoned_memory():
        return twins(name)[twin](**inputs, **how)


def both(test):
    return pytest.mark.parametrize("twin", ["eager", "fused"])(test)


@both
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["dense_decode", "gather_decode"])
def test_attention_is_the_textbook_formula(name, case, dtype, twin, device):
    """Broken: an attention twin is not softmax(q k) v on the rows it was given, for some group, dim or dtype."""
    inputs = inputs_of(name, case, device, dtype)
    out = run(name, twin, inputs)
    expected = getattr(definitions, name)(**inputs)
    assert out.dtype == DTYPES[dtype]
    assert (out.double().cpu() - expected).abs().max() <= TOLERANCE[dtype]


@both
@pytest.mark.parametrize("reduce", ["max", "sum", "none"])
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_scores_are_inner_products(case, dtype, reduce, twin, device):
    """Broken: a score is not the reduced inner product, is not float32, or a hidden row is not -inf."""
    inputs = inputs_of("lowrank_score", case, device, dtype) | {"reduce": reduce}
    out = run("lowrank_score", twin, inputs)
    expected = definitions.lowrank_score(**inputs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double().cpu(), expected, rtol=1e-5, atol=2e-4)


def scores(kind, rows, device):
    generator = torch.Generator().manual_seed(rows)
    s_BNS = torch.randn(2, 3, rows, generator=generator)
    if kind == "ties":
        s_BNS = s_BNS.round()
    if kind == "constant":
        s_BNS = torch.full_like(s_BNS, -1.5)
    if kind == "wide":
        s_BNS = s_BNS * 10.0 ** torch.randint(-38, 38, s_BNS.shape, generator=generator)
        s_BNS[0, 0, rows // 2], s_BNS[0, 1, 0], s_BNS[0, 1, -1] = math.inf, -0.0, 0.0
    if kind == "hidden":
        s_BNS[:, :, rows // 3 :] = -math.inf
        s_BNS[:, :, 0], s_BNS[1, 1] = NAN, -math.inf
    return s_BNS.to(device)


@both
@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "wide", "hidden"])
@pytest.mark.parametrize(
    ("rows", "k", "width"), [(1, 1, 1), (7, 9, 12), (130, 32, 32), (1027, 300, 256), (60, 0, 4), (320, 90, 128)]
)
def test_selection_is_exact_and_breaks_ties_to_the_lowest_row(rows, k, width, kind, twin, device):
    """Broken: a row is missed, doubled, out of order, or a tie goes to another row than in the other twin."""
    s_BNS = scores(kind, rows, device)
    k_B = torch.tensor([k, max(0, k - 1)], dtype=torch.int32, device=device)
    index_BNK, count_BN = run("select_topk", twin, {"s_BNS": s_BNS, "k_B": k_B, "width": width})
    expected_BNK, expected_BN = definitions.select_topk(s_BNS, k_B, width)
    assert index_BNK.dtype == count_BN.dtype == torch.int32
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


def test_a_row_too_long_for_one_block_takes_the_other_path(device):
    """Broken: rows above 40960 fail, or are cut off."""
    s_BNS = torch.zeros(1, 1, 41000, device=device)
    s_BNS[0, 0, [5, 40961, 40999]] = 1.0
    k_B = torch.tensor([4], dtype=torch.int32, device=device)
    index_BNK, _ = run("select_topk", "fused", {"s_BNS": s_BNS, "k_B": k_B, "width": 4})
    assert index_BNK.flatten().tolist() == [0, 5, 40961, 40999]


@both
def test_dense_never_reads_hidden_rows(twin, device):
    """Broken: rows outside the interval, which a preallocated cache leaves undefined, reach the output."""
    inputs = inputs_of("dense_decode", SHAPES[2], device)
    clean = run("dense_decode", twin, inputs)
    for b, (lo, hi) in enumerate(zip(inputs["lo_B"].tolist(), inputs["hi_B"].tolist(), strict=True)):
        for cache in (inputs["k_BGSD"], inputs["v_BGSD"]):
            cache[b, :, :lo], cache[b, :, hi:] = NAN, NAN
    assert torch.equal(run("dense_decode", twin, inputs), clean)


@both
def test_scores_never_read_hidden_rows(twin, device):
    """Broken: an undefined row of the cache gets a score."""
    inputs = inputs_of("lowrank_score", SHAPES[2], device)
    clean = run("lowrank_score", twin, inputs)
    for b, (lo, hi) in enumerate(zip(inputs["lo_B"].tolist(), inputs["hi_B"].tolist(), strict=True)):
        inputs["k_BGSR"][b, :, :lo], inputs["k_BGSR"][b, :, hi:] = NAN, NAN
    assert torch.equal(run("lowrank_score", twin, inputs), clean)


@both
@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_gather_never_reads_rows_that_were_not_chosen(case, twin, device):
    """Broken: a row that no set of the KV head names reaches the output."""
    inputs = inputs_of("gather_decode", case, device)
    clean = run("gather_decode", twin, inputs)
    chosen = torch.zeros(case.batch, case.kv_heads, case.rows, dtype=torch.bool)
    for b in range(case.batch):
        for n in range(case.sets):
            rows = inputs["index_BNK"][b, n, : int(inputs["count_BN"][b, n])].long().cpu()
            chosen[b, n * case.kv_heads // case.sets, rows] = True
    for cache in (inputs["k_BGSD"], inputs["v_BGSD"]):
        cache[~chosen.to(device)] = NAN
    assert torch.equal(run("gather_decode", twin, inputs), clean)


@both
@pytest.mark.parametrize("name", ["dense_decode", "gather_decode"])
def test_strides_of_the_cache_are_respected(name, twin, device):
    """Broken: a cache stored as (B, S, G, D), or as a slice of a longer one, must be copied to be read rightly."""
    inputs = inputs_of(name, SHAPES[2], device)
    expected = run(name, twin, inputs)
    batch, heads, rows, head_dim = inputs["k_BGSD"].shape
    by_rows = torch.full((batch, rows + 9, heads, head_dim), NAN, device=device).transpose(1, 2)[:, :, 4 : rows + 4]
    longer = torch.full((batch + 1, heads, rows + 5, head_dim + 8), NAN, device=device)[1:, :, :rows, :head_dim]
    views = {"k_BGSD": by_rows.copy_(inputs["k_BGSD"]), "v_BGSD": longer.copy_(inputs["v_BGSD"])}
    torch.testing.assert_close(run(name, twin, inputs | views), expected, rtol=0, atol=1e-6)


def test_a_slice_of_wider_queries_is_scored_in_place(device):
    """Broken: the first R columns of the queries, which is what Loki scores with, are read with a wrong stride."""
    inputs = inputs_of("lowrank_score", SHAPES[2], device)
    q_BHR = inputs["q_BHR"]
    wider = torch.cat([q_BHR, torch.full_like(q_BHR, NAN)], -1)[..., : q_BHR.shape[-1]]
    expected = run("lowrank_score", "fused", inputs)
    assert torch.equal(run("lowrank_score", "fused", inputs | {"q_BHR": wider}), expected)


@both
@pytest.mark.parametrize("width", [4, 24, 64])
def test_keys_may_be_shorter_than_values(width, twin, device):
    """Broken: attention from leading components alone reads past them, or gives an output of their width."""
    inputs = inputs_of("dense_decode", SHAPES[2], device)
    short = {name: inputs[name][..., :width] for name in ("q_BHD", "k_BGSD")}
    out = run("dense_decode", twin, inputs | short)
    expected = definitions.dense_decode(**(inputs | short))
    torch.testing.assert_close(out.double().cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 2, 5, 16])
@pytest.mark.parametrize("name", ["dense_decode", "lowrank_score", "gather_decode"])
def test_any_number_of_splits_gives_the_same(name, splits, device):
    """Broken: rows are lost or doubled at the borders of the splits, or an empty split spoils the combination."""
    inputs = inputs_of(name, SHAPES[2], device)
    expected = run(name, "eager", inputs)
    out = run(name, "fused", inputs, plan=Plan(16, splits, 4, 2))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("name", ["dense_decode", "gather_decode"])
def test_nothing_visible_gives_zeros(name, twin, device):
    """Broken: a sequence without a row, such as padding in a batch, turns the output into NaN."""
    inputs = inputs_of(name, SHAPES[2], device)
    if name == "dense_decode":
        inputs |= {"lo_B": torch.zeros_like(inputs["lo_B"]), "hi_B": torch.zeros_like(inputs["hi_B"])}
    else:
        inputs |= {
            "count_BN": torch.zeros_like(inputs["count_BN"]),
            "index_BNK": torch.full_like(inputs["index_BNK"], -1),
        }
    inputs["k_BGSD"].fill_(NAN)
    inputs["v_BGSD"].fill_(NAN)
    assert torch.equal(run(name, twin, inputs), torch.zeros_like(inputs["q_BHD"]))


@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
@pytest.mark.parametrize("name", OPS)
def test_every_case_for_tests_is_verified(name, dtype, device):
    """Broken: a twin errs more than twice as much as the other, or leaves output unwritten."""
    op = load_op(name)
    for case in op.cases:
        if case.purpose == "test":
            verdict = verify(op, case, device, dtype)
            assert verdict.passed, verdict


def test_verification_sees_an_unwritten_element(device, monkeypatch):
    """Broken: verification passes a kernel that does not write its output."""
    import lacuna.kernels.dense_decode.fused as fused

    monkeypatch.setattr(fused, "dense_decode", lambda q_BHD, *_, **__: torch.empty_like(q_BHD))
    op = load_op("dense_decode")
    verdict = verify(op, op.cases[0], device)
    assert not verdict.passed
    assert "NaN" in verdict.reason


@pytest.mark.parametrize(
    ("index", "reason"),
    [([0, 2, -1], "chose"), ([2, 1, 3], "ascending"), ([1, 1, 2], "ascending"), ([0, 1, 9], "outside")],
)
def test_comparison_of_selections_sees_bad_form(index, reason):
    """Broken: a selection with doubled, unordered, absent or impossible rows passes verification."""
    op = load_op("select_topk")
    inputs = {"s_BNS": torch.tensor([[[3.0, 2.0, 1.0, 0.0]]])}
    output = torch.tensor([[index]]), torch.tensor([[sum(i >= 0 for i in index)]])
    comparison = op.compare(inputs, output, (torch.tensor([[[0, 1, 2]]]), torch.tensor([[3]])))
    assert reason in comparison.reason


def test_comparison_of_selections_sees_worse_scores():
    """Broken: a selection of the wrong rows passes because only its form is looked at."""
    op = load_op("select_topk")
    inputs = {"s_BNS": torch.tensor([[[3.0, 2.0, 1.0, 0.0]]])}
    reference = torch.tensor([[[0, 1]]]), torch.tensor([[2]])
    assert op.compare(inputs, (torch.tensor([[[0, 3]]]), torch.tensor([[2]])), reference).error == 2.0


def test_ops_run_without_triton():
    """Broken: an Op, or its eager twin, needs Triton on a machine that has none."""
    program = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "from lacuna.kernels.op import load_op\n"
        f"for op in map(load_op, {OPS!r}): op(*op.make(op.cases[0], torch.device('cpu'), 0).values())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_an_unknown_op_is_named():
    """Broken: a typing error in an operation's name gives a traceback of the import machinery."""
    with pytest.raises(ValueError, match="dense_decod"):
        load_op("dense_decod")
    with pytest.raises(ValueError, match="verify"):
        load_op("verify")
