"""What `decode_time` saw beside its times: bytes held over the tokens, and stages of whole steps."""

import pytest

from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame


@pytest.fixture(scope="module")
def example(make):
    return make.example("decode_time")


def draw(name, records):
    return plugins.load("figures", name).draw(Study(to_frame(records)))


def test_bytes_are_over_the_tokens_of_a_text(make, example):
    """Broken: bytes of one method stand at another's, or at steps counted from the prompt; or the prompt's end is lost."""
    cells = [example.held(make, "full", {}, 1.0, 1.0), example.held(make, "snapkv", {"keep": 0.25}, 0.25, 0.25)]
    (axis,) = draw("memory_timeline", cells).axes
    lines = {line.get_label(): line for line in axis.lines}
    assert set(lines) == {"full", "snapkv keep=0.25", "end of the prefill"}
    assert lines["full"].get_linewidth() > lines["snapkv keep=0.25"].get_linewidth()  # seen below one that covers it
    assert list(lines["full"].get_xdata()) == list(range(1000, 1021))
    assert lines["full"].get_ydata()[0] == pytest.approx(1000 * 2048 / 2**20)
    assert lines["snapkv keep=0.25"].get_ydata()[-1] == pytest.approx(270 * 2048 / 2**20)
    assert list(lines["end of the prefill"].get_xdata()) == [1000, 1000]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("tokens of a text", "MiB held by the cache")
    assert axis.get_ylim()[0] == 0


def test_what_a_gpu_gave_out_is_apart(make, example):
    """Broken: weights are told as the cache's bytes, or squash its lines to the floor."""
    first, second = draw("memory_timeline", [example.sparse(make)]).axes
    assert [axis.get_ylabel() for axis in (first, second)] == ["MiB held by the cache", "GiB allocated on the GPU"]
    assert second.lines[0].get_ydata()[0] == pytest.approx((2**31 + 1000 * 2048) / 2**30)


def test_a_time_without_readings_has_no_timeline(make):
    """Broken: records of before the readings draw an empty panel."""
    with pytest.raises(ValueError, match="needs a cell of the task decode_time"):
        draw("memory_timeline", [make.decode_time("full", {}, 1.0)])


def test_stages_of_a_step_add_up_beside_its_median(make, example):
    """Broken: a stage is missing or stands at another method's step, or no whole step is there to hold them against."""
    dense, sparse = (r for r in example.records(make) if r.cell.device == "cuda")
    (axis,) = draw("stage_breakdown", [dense, sparse, make.decode_time("topk", {"k": 0.5}, 0.5)]).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["full", "loki k=0.25"]
    bars = {c.get_label(): c.patches[0] for c in axis.containers if c.patches[0].get_y() > 0.5}
    assert {name: pytest.approx(bar.get_width()) for name, bar in bars.items()} == {
        "score": 0.2,
        "select": 0.1,
        "gather": 0.3,
        "matmul": 1.0,
    }
    assert max(bar.get_x() + bar.get_width() for bar in bars.values()) == pytest.approx(1.6)
    assert [float(line.get_xdata()[0]) for line in axis.lines] == [2.04, 2.04]
    assert axis.get_xlabel() == "ms per step"


def test_a_long_name_leaves_the_bars_their_room(make, example):
    """Broken: a method of many arguments takes the width of the panel, and its title is cut off."""
    _, sparse = (r for r in example.records(make) if r.cell.device == "cuda")
    label = "evict_then_select select=loki keep=0.5 read=0.25"
    study = Study(to_frame([sparse]).assign(method_label=label))
    (axis,) = plugins.load("figures", "stage_breakdown").draw(study).axes
    (shown,) = (tick.get_text() for tick in axis.get_yticklabels())
    assert shown.replace("\n", " ") == label
    assert max(map(len, shown.splitlines())) <= 32
