"""What may be timed, what a row of results says, and how work is cut."""

import ast
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lacuna.kernels.op
from lacuna.kernels import bench as bench_module
from lacuna.kernels import copied
from lacuna.kernels import verify as verify_module
from lacuna.kernels.baselines import dense_baselines
from lacuna.kernels.bench import bench, bench_baselines, bench_pipeline, rows
from lacuna.kernels.clock import empty_ms, percentiles, refuse_other_gpu, sample_ms
from lacuna.kernels.dense_decode.cut import dense_plan
from lacuna.kernels.grid import write_csv
from lacuna.kernels.op import Case, load_op
from lacuna.kernels.pipeline import make_pipeline
from lacuna.kernels.row import Row
from lacuna.kernels.sparq_score.fused import sparq_plan
from lacuna.kernels.theta_decode.fused import marked_plan, value_plan_of
from lacuna.kernels.tiling import Plan, attention_plan, body_and_rest, choose_splits, gather_plan, score_plan
from lacuna.kernels.verify import judge
from lacuna.results import plugins

CPU = torch.device("cpu")
KERNELS = Path(lacuna.kernels.op.__file__).parent
SMALL = Case("small", 1, 4, 2, 96, head_dim=64, low_dims=16, kept=24, dtype="float32", visible="full")


def test_an_interpreter_is_never_timed():
    """Broken: a time of Triton's interpreter is written down as that of a kernel."""
    op = load_op("dense_decode")
    with pytest.raises(ValueError, match="no speed"):
        bench(op, SMALL, CPU, "fused")
    with pytest.raises(ValueError, match="no plan"):
        bench(op, SMALL, CPU, "eager", plan=Plan(16, 2, 4, 2))
    with pytest.raises(ValueError, match="pipeline"):
        list(rows(["loki_pipeline"], CPU))


def test_what_fails_verification_is_not_timed():
    """Broken: a wrong kernel gets a time."""
    op = load_op("dense_decode")
    wrong = replace(op, eager=lambda q_BHD, *_, **__: torch.full_like(q_BHD, float(q_BHD.dtype == torch.float64)))
    row = bench(wrong, SMALL, CPU, ceiling_gb_s=10.0)
    assert row["status"] == "failed"
    assert row["median_ms"] is None
    assert "float64" in row["reason"]


def test_the_plan_that_is_timed_is_the_plan_that_is_verified(device, monkeypatch):
    """Broken: a plan that gives wrong results is timed because another plan was verified."""
    import lacuna.kernels.dense_decode.fused as fused

    plans, run = [], fused.dense_decode
    monkeypatch.setattr(fused, "dense_decode", lambda *_, plan=None, **inputs: plans.append(plan) or run(**inputs))
    op = load_op("dense_decode")
    assert judge(op, SMALL, op.make(SMALL, device, 0), Plan(16, 2, 4, 2)).passed
    assert plans == [Plan(16, 2, 4, 2)]


def test_a_row_says_where_from_and_how_near_the_ceiling():
    """Broken: a time stands without its device, samples or ceiling."""
    row = bench(load_op("gather_decode"), SMALL, CPU, ceiling_gb_s=10.0)
    assert (row["status"], row["twin"], row["device"], row["launch"]) == ("ok", "eager", "cpu", "direct")
    assert row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    assert len(row["samples_ms"]) == 10
    assert row["percent_of_ceiling"] == pytest.approx(10 * row["bytes"] / row["median_ms"] / 1e6)


def test_each_row_says_what_a_launch_of_nothing_takes(monkeypatch):
    """Broken: a share of the bandwidth is read as a fault of a kernel where the launch alone is half of its time."""
    source = torch.ones(2**24)
    assert 0 < empty_ms(CPU) < min(sample_ms(lambda: source + 1.0, CPU, 5))
    asked = []
    monkeypatch.setattr(bench_module, "empty_ms", lambda device: asked.append(device) or 0.25)
    monkeypatch.setattr(bench_module, "copy_gb_s", lambda _: 10.0)
    assert [row["empty_ms"] for row in rows(["gate", "add_norm"], CPU, [SMALL])] == [0.25, 0.25]
    assert asked == [CPU]


def test_each_time_stands_beside_that_of_a_copy_of_as_many_bytes(monkeypatch):
    """Broken: the bytes of another row are copied, or a launch's time is left out of one of the two."""
    monkeypatch.setattr(bench_module, "copy_gb_s", lambda _: 10.0)
    asked = []
    monkeypatch.setattr(copied, "copied_ms", lambda size, device: asked.append((size, device)) or 0.5)
    found = list(rows(["gate", "add_norm"], CPU, [SMALL]))
    assert asked == [(row["bytes"], CPU) for row in found]
    assert [row["copy_ms"] for row in found] == [0.5, 0.5]
    assert [row["percent_of_copy"] for row in found] == [pytest.approx(50 / row["median_ms"]) for row in found]


def test_baselines_compute_the_same_attention():
    """Broken: a baseline that we beat computes something else, or one that cannot run stops the others."""
    found = {row["baseline"]: row for row in bench_baselines(SMALL, CPU, 10.0)}
    assert set(found) == set(dense_baselines())
    assert all(row["status"] == "ok" or row["reason"] for row in found.values())
    for name in ("naive", "sdpa_math", "sdpa_flash"):
        assert found[name]["status"] == "ok", found[name]
        assert found[name]["error"] < 1e-5
    with pytest.raises(ValueError, match="visible"):
        list(bench_baselines(replace(SMALL, visible="ragged"), CPU, 10.0))


def test_the_pipeline_is_exact_attention_when_it_keeps_all(device):
    """Broken: the chain of the three operations loses or misplaces a row."""
    op = load_op("dense_decode")
    pipeline = make_pipeline(replace(SMALL, kept=SMALL.rows), device, 0)
    assert all(verdict.passed for verdict in pipeline.verdicts())
    torch.testing.assert_close(pipeline.run(), op.eager(**pipeline.dense), rtol=1e-5, atol=1e-5)


def test_the_pipeline_is_held_against_the_fastest_dense_kernel():
    """Broken: a speed-up is quoted against a slow baseline, or against one that failed."""
    blank = {"twin": "", "baseline": ""}
    dense = [
        blank | {"baseline": "slow", "status": "ok", "median_ms": 4.0},
        blank | {"twin": "fused", "status": "ok", "median_ms": 2.0},
        blank | {"baseline": "broken", "status": "failed", "median_ms": None},
    ]
    row = bench_module._held_against(Row("loki_pipeline", "small", median_ms=1.0), dense)
    assert (row.against, row.speed_up) == ("fused", 2.0)
    with pytest.raises(ValueError, match="pipeline"):
        bench_pipeline(SMALL, CPU, 10.0, dense)


def test_rows_are_written_with_their_samples(tmp_path):
    """Broken: the archive loses a column or the raw samples."""
    row = bench(load_op("select_topk"), SMALL, CPU, ceiling_gb_s=10.0)
    write_csv([row], tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert set(line) == set(Row.__dataclass_fields__)
    assert len(line["samples_ms"].split()) == len(row["samples_ms"])


def test_copies_of_what_is_written_count_as_memory():
    """Broken: a row swapped in a cache of 8 GiB is told as out of memory, though its kernel fits."""
    cache = {"keys_BGSD": torch.empty(6 * 2**30, dtype=torch.uint8, device="meta")}
    assert not verify_module.large(cache)
    assert verify_module.large(cache, ("keys_BGSD",))


@pytest.mark.parametrize("name", ["theta_decode", "select_topk", "keep_rows", "lowrank_score", "sum_norm", "swap_row"])
def test_a_cache_too_large_for_float64_is_held_by_its_first_sequence(name, device, monkeypatch):
    """Broken: a large shape is told as out of memory, though its kernel fits, or passes with memory never written."""
    op, case = load_op(name), replace(SMALL, batch=3)
    monkeypatch.setattr(verify_module, "WHOLE_BYTES", 0)
    inputs, seen, own = op.make(case, device, 0), [], op.eager

    def eager(*given, **named):
        seen.append(next(iter(named.values())).shape[0])
        return own(*given, **named)

    assert judge(replace(op, eager=eager), case, inputs).passed
    assert set(seen) == {1}
    whole = vars(verify_module)["run_poisoned"](op, inputs)
    last = whole[0] if isinstance(whole, tuple) else whole
    if last.is_floating_point():
        last[-1] = float("nan")
        monkeypatch.setattr(verify_module, "run_poisoned", lambda *_: whole)
        assert "beyond the first sequence" in judge(op, case, inputs).reason
        last[0] = 7.0
        assert not judge(op, case, inputs).passed


def test_percentiles_are_of_the_samples():
    """Broken: the spread that a row shows is not that of its samples."""
    assert percentiles(tuple(float(n) for n in range(101))) == (10.0, 50.0, 90.0)


PLANS = [attention_plan, dense_plan, gather_plan, score_plan, sparq_plan, value_plan_of, marked_plan]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("pairs", [1, 8, 128, 640])
@pytest.mark.parametrize("rows_", [1, 100, 4096, 131072])
@pytest.mark.parametrize("dim", [24, 64, 128, 256])
@pytest.mark.parametrize("item_bytes", [2, 4])
def test_plans_fit_a_hopper_gpu(plan, pairs, rows_, dim, item_bytes):
    """Broken: a shape asks for an empty grid, splits without rows, or more shared memory than an SM has."""
    found = plan(pairs, rows_, dim, item_bytes, 132)
    assert 16 <= found.block_rows <= 512
    assert 1 <= found.splits <= 128
    assert found.splits == 1 or found.splits * found.block_rows < rows_


def test_a_few_rows_more_do_not_double_a_block():
    """Broken: the cache of an engine, a little longer than its prompt, costs a selection twice the registers."""
    assert body_and_rest(4096) == (4096, 0)
    assert body_and_rest(4096 + 60) == (4096, 64)
    assert body_and_rest(32768 + 60) == (32768, 64)
    assert body_and_rest(3 * 4096) == (16384, 0)
    assert all(sum(body_and_rest(length)) >= length for length in range(1, 3000))


def test_a_pair_with_an_sm_to_itself_is_no_ones_share():
    """Broken: shares are written and combined where every SM has a pair of its own, or one block has what all could."""
    assert dense_plan(128, 4145, 128, 2, 132) == (128, 1, 4, 3)
    for shape in ((128, 32768, 128, 2), (128, 4145, 128, 4), (64, 4145, 128, 2), (160, 4145, 128, 2)):
        assert dense_plan(*shape, 132) == attention_plan(*shape, 132)


def test_dense_attention_is_cut_by_its_own_plan(monkeypatch, device):
    """Broken: attention goes on being shared where each pair has an SM, and no result tells."""
    seen = []
    monkeypatch.setattr(
        "lacuna.kernels.dense_decode.fused.dense_plan", lambda *given: seen.append(given) or Plan(16, 1, 4, 2)
    )
    op = load_op("dense_decode")
    case = Case("few", 1, 4, 2, 40, head_dim=32, low_dims=16, kept=8, dtype="float32", visible="full")
    inputs = op.make(case, device, 0)
    torch.testing.assert_close(op.fused(**inputs), op.eager(**inputs), rtol=0, atol=1e-5)
    assert [given[:4] for given in seen] == [(2, 40, 32, 4)]


def test_splits_fill_the_gpu():
    """Broken: a batch of one long sequence runs on a few SMs."""
    assert choose_splits(pairs=8, tiles=2048, slots=264) == 33
    assert choose_splits(pairs=512, tiles=256, slots=264) == 1


def test_every_operation_describes_itself_in_one_line():
    """Broken: a list of operations, which is read without importing them, has a gap."""
    folders = [path for path in KERNELS.iterdir() if (path / "__init__.py").exists()]
    assert {path.name for path in folders} == set(plugins.names("ops"))
    for path in folders:
        tree = ast.parse((path / "__init__.py").read_text())
        assert ast.get_docstring(tree).splitlines()[0].endswith(".")
        assert load_op(path.name).name == path.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_cuda_graph_captures_a_decode_step():
    """Broken: a host sync or a dynamic shape keeps the pipeline out of a CUDA graph."""
    from lacuna.kernels.clock import captured

    pipeline = make_pipeline(replace(SMALL, batch=2, rows=40000, kept=1000), torch.device("cuda"), 0)
    expected = pipeline.run()
    result = torch.empty_like(expected)
    replay = captured(lambda: result.copy_(pipeline.run()))
    result.fill_(float("nan"))
    replay()
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_thresholds_that_k_rows_exceed_attend_as_the_best_k_do(device):
    """Broken: the chain of `loki_theta` attends to other rows than those above its thresholds."""
    best, above = (make_pipeline(SMALL, device, 0, name) for name in ("loki_pipeline", "loki_theta_pipeline"))
    assert [verdict.passed for verdict in above.verdicts()] == [True, True]
    torch.testing.assert_close(above.run(), best.run(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="reduce"):
        make_pipeline(replace(SMALL, reduce="none"), device, 0, "loki_theta_pipeline")


def test_another_gpu_than_the_one_named_refuses_to_time(monkeypatch):
    """Broken: times of another card, or of a CPU, are taken for those of the one that a table names."""
    with pytest.raises(ValueError, match="a CPU: nothing was timed"):
        refuse_other_gpu("H200", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    with pytest.raises(ValueError, match="this is NVIDIA H100"):
        refuse_other_gpu("H200", torch.device("cuda"))
    refuse_other_gpu("H100", torch.device("cuda"))
    refuse_other_gpu("", CPU)
