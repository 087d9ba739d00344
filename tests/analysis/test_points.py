"""What is pooled, what is compared, and under which name."""

import math
import time
from dataclasses import replace

import pytest

from lacuna.analysis.label import label_cells, tell_apart
from lacuna.analysis.points import points
from lacuna.results import plugins
from lacuna.results.cell import Cell, Spec
from lacuna.results.frame import to_frame
from lacuna.results.record import Record


def one(found, method, task):
    rows = found[(found["method_label"] == method) & (found["task"] == task)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_estimates_are_the_records_own(demo):
    """Broken: a table's number is not the metric that the run wrote."""
    found = points(demo)
    for task, metric in (("perplexity", "perplexity"), ("decode_time", "decode_ms_median")):
        for label in found["method_label"].unique():
            said = demo.loc[(demo["method_label"] == label) & (demo["task"] == task), metric].item()
            assert one(found, label, task)["value"] == pytest.approx(said)


def test_lengths_of_a_needle_are_pooled_and_contexts_of_a_time_are_not(make):
    """Broken: a median over different contexts is shown as one time, or one accuracy falls apart in many columns."""
    found = points(to_frame(make.sweep(prompts=(256, 512))))
    assert one(found, "full", "needle")["n"] == 60
    times = found[(found["method"] == "full") & found["is_time"]]
    assert set(times["task_label"]) == {"decode_time prompt=256", "decode_time prompt=512"}


def test_contexts_stand_in_the_order_of_their_numbers(make):
    """Broken: 1024 tokens stand before 256, since their first digit is smaller."""
    found = points(to_frame(make.sweep(prompts=(512, 1024, 256))))
    times = found[(found["method"] == "full") & found["is_time"]]
    assert list(times["task_label"]) == [f"decode_time prompt={length}" for length in (256, 512, 1024)]


def test_differences_use_the_same_samples(make):
    """Broken: a method is compared with dense on needles that only one of them was asked."""
    records = make.sweep()
    dense = next(r for r in records if r.cell.method.name == "full" and r.cell.task.name == "needle")
    records[records.index(dense)] = make.failed(dense.cell)
    found = points(to_frame(records))
    whole, part = one(points(to_frame(make.sweep())), "topk k=0.5", "needle"), one(found, "topk k=0.5", "needle")
    assert part["n"] == whole["n"]
    truth = [r for r in records if r.status == "ok" and r.cell.task.name == "needle" and r.cell.method.name != "loki"]
    shared = {r.cell.task for r in truth if r.cell.method.name == "full"}
    mean = {
        m: [s["score"] for r in truth if r.cell.method == m and r.cell.task in shared for s in r.samples]
        for m in (Spec("full"), Spec("topk", args={"k": 0.5}))
    }
    ours, theirs = mean[Spec("topk", args={"k": 0.5})], mean[Spec("full")]
    assert part["change"] == pytest.approx(sum(ours) / 40 - sum(theirs) / 40)


def test_samples_of_other_windows_are_no_pairs(make):
    """Broken: window 3 of one run is paired with window 4 of another, and the difference is noise."""
    base, other = make.perplexity("full", {}, 1.0), make.perplexity("topk", {"k": 0.5}, 0.5)
    moved = [{**s, "window": s["window"] + 1} for s in other.samples]
    found = points(to_frame([base, Record(**{**vars(other), "samples": moved})]))
    assert math.isnan(one(found, "topk k=0.5", "perplexity")["change"])


def test_speed_up_is_dense_over_method(demo):
    """Broken: a slower method is shown as faster."""
    found = points(demo)
    dense, slow = one(found, "full", "decode_time")["value"], one(found, "topk k=0.5", "decode_time")
    assert slow["value"] > dense
    assert slow["change"] == pytest.approx(dense / slow["value"])


def test_density_is_the_ledgers_mean_over_tokens(make):
    """Broken: a short cell weighs as much as a long one in the density that a figure shows."""
    cells = [make.needle("topk", {"k": 0.5}, 0.5, n) for n in (256, 512)]
    heavy = [
        Record(**{**vars(c), "ledger": make.ledger(d, t)})
        for c, d, t in zip(cells, (0.5, 0.2), (100, 300), strict=True)
    ]
    assert points(to_frame(heavy))["density"].item() == pytest.approx((0.5 * 100 + 0.2 * 300) / 400)


def test_dense_of_another_protocol_serves_but_of_another_dtype_does_not(make):
    """Broken: bfloat16 is compared with float32, or sparse prefill has no baseline at all."""
    dense = make.perplexity("full", {}, 1.0)
    ours = [
        make.perplexity("topk", {"k": 0.5}, 0.5, prefill="sparse"),
        make.perplexity("topk", {"k": 0.5}, 0.5, dtype="bfloat16"),
    ]
    found = points(to_frame([dense, *ours]))
    change = {row["setting"]: row["change"] for _, row in found[~found["is_dense"]].iterrows()}
    assert not math.isnan(change["dtype=float32 prefill=sparse"])
    assert math.isnan(change["dtype=bfloat16 prefill=dense"])


def test_cells_that_differ_have_names_that_differ(make):
    """Broken: two calibrations, seeds or models share a row, and their samples are thrown together."""
    records = [make.perplexity("loki", {"k": 0.5, "basis": {"text": t}}, 0.5) for t in ("prose", "code")]
    records += [make.perplexity("full", {}, 1.0, seed=s) for s in (0, 1)]
    cells = label_cells(to_frame(records))
    labels = cells.groupby(["method_label", "task_label"]).size()
    assert labels.max() == 1
    assert {"loki k=0.5 basis.text=prose", "loki k=0.5 basis.text=code"} <= set(cells["method_label"])


def test_files_are_named_only_where_nothing_else_tells_tasks_apart(make):
    """Broken: headings are wider than the page, and differ between machines."""
    one, two, other = (make.perplexity("full", {}, 1.0) for _ in range(3))
    tasks = ({"task": "a", "data": "/x/a/1.gz"}, {"task": "b", "data": "/x/b/2.gz"}, {"task": "b", "data": "/x/c/2.gz"})

    def told(*named):
        cells = [
            replace(r, cell=replace(r.cell, task=replace(r.cell.task, args=args, digest=args["data"])))
            for r, args in named
        ]
        return set(label_cells(to_frame(cells))["task_label"])

    assert told((one, tasks[0]), (two, tasks[1])) == {"perplexity task=a", "perplexity task=b"}
    assert told((two, tasks[1]), (other, tasks[2])) == {
        "perplexity data=b/2.gz digest=b/2.gz",
        "perplexity data=c/2.gz digest=c/2.gz",
    }


def test_only_what_differs_is_named():
    """Broken: names repeat what holds for the whole table."""
    facts = [{"a": 1, "args": {"k": 1}}, {"a": 1, "args": {"k": 2, "w": 3}}, {"a": 5}]
    assert tell_apart(["x", "x", "y"], facts) == ["x k=1", "x k=2 w=3", "y"]


def test_a_key_counts_once(make):
    """Broken: a record that is in an archive twice doubles its samples and narrows its interval."""
    twice = make.perplexity("full", {}, 1.0)
    assert points(to_frame([twice, twice]))["n"].item() == 24


def test_no_records_are_one_sentence():
    """Broken: a report of an empty store ends in a traceback."""
    with pytest.raises(ValueError, match=r"no records.*lacuna run"):
        points(to_frame([]))


def test_a_default_is_named_where_others_depart_from_it(tmp_path, monkeypatch, make):
    """Broken: a row `streaming_llm` beside `streaming_llm window=60` leaves open which window it had."""
    (tmp_path / "lab.py").write_text("class M:\n    window: int = 1020\n")
    monkeypatch.setitem(plugins.FOLDERS, "methods", str(tmp_path))
    records = [make.record(make.cell("lab", {"window": w}), {"perplexity": 2.0}, []) for w in (1020, 60)]
    assert set(label_cells(to_frame(records))["method_label"]) == {"lab window=1020", "lab window=60"}


def test_a_thousand_groups_take_a_second_or_two(make, pace):
    """Broken: a report of 10,000 records takes minutes, because each point is computed in a table of its own."""
    records = [
        Record(**{**vars(r), "cell": Cell(**{**vars(r.cell), "model": Spec(f"m{i}", digest="d")})})
        for r in make.sweep()
        for i in range(33)
    ]
    frame = to_frame(records)
    start = time.process_time()
    assert len(points(frame)) == 33 * 30
    assert time.process_time() - start < 2 * pace


def test_the_fastest_dense_is_the_baseline_and_the_naive_is_named(make):
    """Broken: a speed-up is over a dense kernel that is easy to beat, or nobody knows over which."""

    def slow(record, factor):
        return Record(**{**vars(record), "samples": [{**s, "ms": s["ms"] * factor} for s in record.samples]})

    cells = [make.decode_time("full", {"kernel": "lacuna"}, 1.0), make.decode_time("topk", {"k": 0.5}, 0.5)]
    cells += [slow(make.decode_time("full", {"kernel": name}, 1.0), f) for name, f in (("sdpa", 0.5), ("eager", 3.0))]
    found = points(to_frame(cells)).set_index("method_label")
    times = found["value"]
    assert found.loc["topk k=0.5", "change"] == pytest.approx(times["full kernel=sdpa"] / times["topk k=0.5"])
    assert found.loc["topk k=0.5", "base"] == "full kernel=sdpa"
    assert found.loc["topk k=0.5", "naive"] == pytest.approx(times["full kernel=eager"] / times["topk k=0.5"])
    assert found.loc["full kernel=eager", "change"] < 0.3
    assert math.isnan(found.loc["full kernel=sdpa", "change"])


def test_kernels_of_dense_attention_share_a_score(make):
    """Broken: a method's loss is held against another kernel of dense attention on each run."""
    cells = [make.perplexity("full", {"kernel": name}, 1.0) for name in ("eager", "lacuna")]
    found = points(to_frame([*cells, make.perplexity("topk", {"k": 0.5}, 0.5)])).set_index("method_label")
    assert found.loc["topk k=0.5", "base"] in ("full", "full kernel=lacuna")


def test_perplexities_of_two_window_lengths_are_two_points(make):
    """Broken: windows of 512 and of 4096 tokens are thrown together in one perplexity, since samples number windows."""
    base, cells = make.perplexity("full", {}, 1.0), []
    for window in (512, 4096):
        asked = make.cell("full", {}, "perplexity", {"window": window})
        cells.append(Record(**{**vars(base), "cell": asked}))
    assert points(to_frame(cells))["n"].tolist() == [24, 24]
