"""Keys of a model over real text, in the shape that a kernel is timed on."""

from pathlib import Path

import pytest
import torch

from lacuna.cli import main
from lacuna.harness.real_keys import RealKeys
from lacuna.harness.task import read_corpus
from lacuna.jobs.inputs import Inputs
from lacuna.kernels.drawn import drawn_from, looks_at_keys, normal
from lacuna.kernels.op import Case, load_op
from lacuna.models.load import load_model
from lacuna.results import plugins
from lacuna.results.store import Store

CPU = torch.device("cpu")
KEYED = {
    "choose_by_weight", "dense_decode", "gather_decode", "lowrank_score", "select_topk", "sparq_score", "theta_decode",
    "theta_rows", "threshold_compact", "threshold_score",
}  # fmt: skip


def case_of(dim, heads, groups, rows):
    return Case(
        "c", 1, heads, groups, rows, head_dim=dim, low_dims=dim // 4, kept=rows // 4, dtype="float32", visible="full"
    )


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return Inputs(Path.cwd(), Store(tmp_path_factory.mktemp("store"))).zoo("pocket")


@pytest.fixture(scope="module")
def real(spec):
    return RealKeys(spec, CPU, window=128, windows=3)


def test_one_head_of_the_case_is_one_head_of_the_model(real, spec):
    """Scores would be those of other rows, another query or another temperature than the model has."""
    model, tokenizer = load_model(spec, "float32", "cpu")
    ids = tokenizer(next(iter(read_corpus("prose"))).text, add_special_tokens=False)["input_ids"][:128]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(torch.tensor([ids]), output_attentions=True).attentions[0][0, :2, -1]
    drawn = real(case_of(64, 2, 1, 128), CPU, 0)
    mine = (drawn.q_BHD[0] @ drawn.k_BGSD[0, 0].T * 64**-0.5).softmax(-1)
    torch.testing.assert_close(mine, weights, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("dim", "heads", "groups", "rows"), [(64, 16, 1, 300), (96, 6, 2, 100), (128, 8, 2, 500), (256, 4, 4, 40)])  # fmt: skip
def test_any_shape_is_filled_and_its_leading_columns_vary_most(dim, heads, groups, rows, real):
    """A low-rank score would be timed on columns that say nothing; rows would be missing or not finite."""
    drawn = real(case_of(dim, heads, groups, rows), CPU, 1)
    assert drawn.q_BHD.shape == (1, heads, dim)
    assert drawn.k_BGSD.shape == drawn.v_BGSD.shape == (1, groups, rows, dim)
    assert all(part.isfinite().all() for part in drawn)
    power = drawn.k_BGSD.square().mean(2)
    assert bool((power[..., : dim // 4].sum(-1) > 0.5 * power.sum(-1)).all())
    assert len({float(key) for key in drawn.k_BGSD[0, :, 0, 0]}) == groups, "heads differ"


def test_operations_that_look_at_keys_get_them(real):
    """An operation's inputs would be random, and its row say that they are a model's."""
    found = {name for name in plugins.names("ops") if looks_at_keys(load_op(name))}
    assert found >= KEYED
    assert not found & {"gate", "add_norm", "append_row", "keep_rows", "rotate_rows"}
    case = case_of(128, 4, 2, 200)
    with drawn_from(real):
        for name in sorted(KEYED - {"theta_rows", "threshold_score", "threshold_compact", "theta_decode"}):
            inputs = load_op(name).make(case, CPU, 0)
            if "k_BGSD" in inputs:
                assert torch.equal(inputs["k_BGSD"], real(case, CPU, 0).k_BGSD), name
        chosen = load_op("gather_decode").make(case, CPU, 0)["index_BNK"]
        scores = load_op("select_topk").make(case, CPU, 0)["s_BNS"]
    best = scores.topk(case.kept, -1).indices.sort(-1).values
    assert torch.equal(chosen.long(), best)


def test_the_command_times_both_and_names_them(tmp_path, monkeypatch, capsys):
    """Times on a model's keys would be taken for those on random ones, or a misspelt model end in a traceback."""
    monkeypatch.setattr("lacuna.harness.real_keys.RealKeys", lambda *_: RealKeys.__new__(RealKeys))
    monkeypatch.setattr(RealKeys, "__call__", lambda _self, *asked: normal(*asked))
    options = ["--device", "cpu", "--rows", "64", "--batch", "1", "--heads", "4x2", "--head-dim", "64"]
    assert (
        main(["bench", "gate", "select_topk", *options, "--keys", "random", "pocket", "-o", str(tmp_path / "b.csv")])
        == 0
    )
    lines = (tmp_path / "b.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in lines] == [
        ["gate", "b1_h4_g2_s64_1of4"],
        ["select_topk", "b1_h4_g2_s64_1of4"],
        ["select_topk", "b1_h4_g2_s64_1of4_keys-pocket"],
    ]
    assert main(["bench", "select_topk", *options, "--keys", "poket"]) == 2
    assert "pocket" in capsys.readouterr().err
    assert main(["bench", "gate", *options, "--keys", "pocket"]) == 2
    assert "looks at keys" in capsys.readouterr().err
