"""Which marks and lines of a figure there are, and what tells them apart: each against a case made by hand."""

import matplotlib.colors as mc
import pandas as pd
import pytest

from lacuna.analysis import bench
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame
from lacuna.results.record import Record

TIME = {"case": "b1_h8_g4_s64", "twin": "fused", "baseline": "", "status": "ok", "device": "GPU", "run": "ops",
        "median_ms": 0.1, "ceiling_gb_s": 4000.0}  # fmt: skip


def roofline(*sizes):
    rows = [{**TIME, "op": f"op{i}", "bytes": size, "flops": 2 * size} for i, size in enumerate(sizes)]
    whole = bench.none()
    study = Study(to_frame([]), pd.DataFrame(rows).reindex(columns=whole.columns))
    (axis,) = plugins.load("figures", "roofline").draw(study).axes
    return {line.get_label() for line in axis.lines if "copy" not in line.get_label()}


@pytest.mark.parametrize(
    ("sizes", "drawn"),
    [
        ((10e6, 10e6 - 1, 4e9), {"op0", "op2"}),  # ten million bytes are enough, one less is not
        ((9e6, 1e3), {"op0", "op1"}),  # of small ones alone all are shown
    ],
)
def test_what_is_mostly_a_launch_is_no_mark_beside_what_is_not(sizes, drawn):
    """An operation of a few kilobytes would look like one that wastes the memory's bandwidth, or a run of a CPU be empty."""
    assert roofline(*sizes) == drawn


def planted(make, method, share, lengths=(256, 1024)):
    for length in lengths:
        asked = make.cell(method, {"k": share} if share < 1 else {}, "needle", {"length": length})
        samples = [{"length": length, "depth": 0.5, "repeat": r, "score": r % 2} for r in range(4)]
        yield make.record(asked, {"accuracy": 0.5}, samples, share)


def looks(axis):
    """Label -> style, colour, how full the mark is."""
    marks = {c.get_label(): c[0] for c in axis.containers}
    return {
        name: (m.get_linestyle(), mc.to_hex(m.get_color()), mc.to_rgba(m.get_markerfacecolor())[3])
        for name, m in marks.items()
    }


def test_budgets_of_one_method_differ_in_line_and_mark(make):
    """Two budgets of a method would be one line, or the smaller look like the larger."""
    shares = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    cells = [*planted(make, "full", 1.0), *planted(make, "loki", 0.25)]
    cells += [r for share in shares for r in planted(make, "topk", share)]
    found = looks(make.draw("passkey_curve", cells).axes[0])
    topk = [found[f"topk k={share:g}"] for share in shares]
    assert [style for style, _, _ in topk] == ["-", ":", "--", "-.", "-"]
    assert len({colour for _, colour, _ in topk}) == 1
    full = [filled for _, _, filled in topk]
    assert full == sorted(set(full), reverse=True)
    (loki,) = (look for name, look in found.items() if name.startswith("loki"))
    assert loki[0] == "-"  # another method begins anew
    assert loki[1] != topk[0][1]


def test_a_cell_whose_samples_have_no_length_is_no_part_of_a_curve(make):
    """A perplexity among the cells would be an error, or a line of nothing."""
    cells = [*planted(make, "topk", 0.5), make.perplexity("topk", {"k": 0.5}, 0.5)]
    (axis,) = make.draw("passkey_curve", cells).axes
    assert [list(c[0].get_ydata()) for c in axis.containers] == [[0.5, 0.5]]


def budgets(make, *windows):
    cells = [make.record(make.cell("streaming_llm", {"window": w, "sinks": 4}), {"perplexity": 20.0 - i}, [], 0.5)
             for i, w in enumerate(windows)]  # fmt: skip
    (axis,) = make.draw("perplexity_budget", [*cells, make.record(make.cell(), {"perplexity": 8.0}, [])]).axes
    return axis


def test_a_budget_of_nothing_has_a_place_on_the_axis(make):
    """A logarithmic axis would leave out the mark of a window of 0 tokens, and the curve begin at a better budget."""
    axis = budgets(make, 0, 64, 256)
    assert axis.get_xscale() == "linear"
    (line,) = (c[0] for c in axis.containers)
    assert list(line.get_xdata()) == [0, 64, 256]
    assert list(line.get_ydata()) == [20.0, 19.0, 18.0]
    assert axis.get_xlim()[0] < 0
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["0", "64", "256"]


def test_budgets_above_nothing_are_on_a_logarithmic_axis(make):
    """Budgets that halve would crowd at one end."""
    axis = budgets(make, 64, 128, 256)
    assert axis.get_xscale() == "log"
    assert list(axis.get_xticks()) == [64, 128, 256]


def held(make, method, task, args, texts, context, share):
    """A cell of rows of 1024 bytes, so many texts at a time."""
    asked = make.cell(method, {}, task, args)
    one = make.record(asked, {"accuracy": 0.5, "perplexity": 9.0, "decode_ms_median": 1.0}, [], share)
    dense = 1024 * texts * context
    decode = {"rows_visible_mean": context / 2, "bytes_dense_per_token": 1024 * context / 2, "density": share}
    ledger = {"decode": decode, "bytes_held": share * dense, "bytes_held_dense": dense}
    return Record(**{**vars(one), "ledger": ledger})


def test_memory_is_of_one_text_of_its_context(make):
    """A task that feeds sixteen short texts at a time would seem to hold as much for each as for a long one."""
    cells = [
        held(make, method, *rest, share)
        for method, share in (("full", 1.0), ("topk", 0.25))
        for rest in (
            ("needle", {"length": 512}, 16, 512),
            ("decode_time", {"prompt": 2048, "batch": 4}, 4, 2048),
            ("perplexity", {"prompt": 1, "window": 1024}, 8, 1024),
        )
    ]
    (axis,) = make.draw("memory_context", cells).axes
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines["full"].get_xdata()) == [512, 1024, 2048]
    assert list(lines["full"].get_ydata()) == pytest.approx([2**19, 2**20, 2**21])
    assert list(lines["topk"].get_ydata()) == pytest.approx([2**17, 2**18, 2**19])


def sizes_of(axis):
    """Tick -> the bytes that its label says."""
    units = {"bytes": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
    said = [text.get_text().split() for text in axis.get_yticklabels()]
    return dict(zip(axis.get_yticks(), (int(number) * units[unit] for number, unit in said), strict=True))


@pytest.mark.parametrize(("contexts", "least"), [((512, 2**21), 512), ((520, 700), 512)])
def test_ticks_of_memory_are_whole_numbers_of_their_unit(make, contexts, least):
    """A small model's cache would be read off ticks like 0.00098 GiB, rounded, and within one doubling off none."""
    cells = [held(make, "full", "needle", {"length": c}, 1, c, 1.0) for c in contexts]
    (axis,) = make.draw("memory_context", cells).axes
    found = sizes_of(axis)
    assert all(tick == told for tick, told in found.items())
    assert min(found) == least * 1024
    assert 2 <= len(found) <= 8
    low, high = axis.get_ylim()
    assert low < min(found)
    assert max(1024 * contexts[-1], *found) < high


def test_a_peak_that_one_context_has_is_seen(make):
    """Dashes between one point are none: the axis would reach to a peak that nobody sees."""
    cells = [held(make, "topk", "needle", {"length": c}, 1, c, 0.0625) for c in (512, 1024)]
    peak = Record(**{**vars(cells[1]), "metrics": {**cells[1].metrics, "peak_gib": 0.5}})
    (axis,) = make.draw("memory_context", [cells[0], peak]).axes
    (line,) = (one for one in axis.lines if one.get_linestyle() == "--")
    assert (list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) == ([1024], [2**29], "_")
    (mark,) = (one for one in axis.lines if one.get_label().startswith("topk"))
    assert mc.to_rgba(mark.get_markeredgecolor()) == mc.to_rgba(mark.get_color())  # the palest has a full edge
    assert mc.to_rgba(mark.get_markerfacecolor())[3] < 0.1
