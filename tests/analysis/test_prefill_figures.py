"""Figures of the kernels for many query rows, from a table made by hand."""

import pytest

from lacuna.analysis import bench
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame

HEAD = "op,case,twin,baseline,status,device,plan,median_ms,peak_mib,bytes,flops,ceiling_gb_s"
ROWS = """
attention,b2_h32_g32_s2048,,sdpa_flash,ok,cuda X,,0.27,16,1,1,4000
attention,b2_h32_g32_s8192,,sdpa_flash,ok,cuda X,,3.4,64,1,1,4000
attention_gradient,b2_h32_g32_s8192,,sdpa_flash,ok,cuda X,,9.5,200,1,1,4000
landmark_attention,b2_h32_g32_s2048_block64_d128,fused,,ok,cuda X,,0.25,17,1,1,4000
landmark_attention,b2_h32_g32_s8192_block64_d128,fused,,ok,cuda X,,2.9,66,1,1,4000
landmark_attention,b2_h32_g32_s8192_block64_d128,fused,,ok,cuda X,other tiles,99,66,1,1,4000
landmark_attention,b2_h32_g32_s16384_block64_d128,fused,,failed,cuda X,,77,66,1,1,4000
landmark_gradient,b2_h32_g32_s8192_block64_d128,fused,,ok,cuda X,,8.1,210,1,1,4000
landmark_attention,block16_64,verify,,ok,cuda X,,,,0,0,4000
"""


def study(tmp_path, rows):
    path = tmp_path / "prefill_landmark.csv"
    path.write_text(HEAD + rows, encoding="utf-8")
    assert bench.is_bench(path)
    return Study(to_frame([]), bench.read(path))


def test_times_by_length(tmp_path):
    """Broken: what failed, or was cut in another way, is drawn as a kernel's time, or a pass is held against another."""
    figure = plugins.load("figures", "prefill_time").draw(study(tmp_path, ROWS))
    panels = {axis.get_title().split(":")[0]: axis for axis in figure.axes if axis.get_title()}
    assert set(panels) == {"forward", "backward"}
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panels["forward"].lines}
    assert drawn == {"sdpa_flash": [(2048, 0.27), (8192, 3.4)], "landmark_attention": [(2048, 0.25), (8192, 2.9)]}
    drawn = {line.get_label(): list(line.get_ydata()) for line in panels["backward"].lines}
    assert drawn == {"sdpa_flash": [9.5], "landmark_gradient": [8.1]}


def test_operations_are_told_apart(tmp_path):
    """Broken: two kernels of one figure share colour and mark, or a back end has another mark in the next panel."""
    module = plugins.load("figures", "prefill_time")
    strokes = [(s["color"], s["marker"]) for s in map(module._stroke, [*module.OPS, *module.DENSE])]
    assert len(set(strokes)) == len(strokes)


def test_head_dims_are_not_mixed(tmp_path):
    """Broken: in a table of several head dims one kernel's time at one of them stands beside another's at another."""
    narrow = ROWS.replace("d128", "d64").replace("0.25", "0.75").replace("2.9,", "1.9,")
    figure = plugins.load("figures", "prefill_time").draw(study(tmp_path, ROWS + narrow))
    panels = {axis.get_title().split(":")[0]: axis for axis in figure.axes if axis.get_title()}
    drawn = {line.get_label(): list(line.get_ydata()) for line in panels["forward"].lines}
    assert drawn["landmark_attention"] == [0.25, 2.9]


def test_memory_by_length(tmp_path):
    """Broken: memory is that of another call, or the square that it is held against has a wrong unit."""
    alone = "attention,b1_h6_g3_s8192,,sdpa_flash,ok,cuda X,,3.4,64,1,1,4000\n"  # of a shape that nothing of ours has
    figure = plugins.load("figures", "prefill_memory").draw(study(tmp_path, ROWS + alone))
    assert [axis.get_title().split("\n")[0] for axis in figure.axes if axis.get_title()] == ["batch 2, heads 32/32"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["landmark_attention"] == [17, 66]
    assert lines["one head's matrix of scores"] == [8, 128]


@pytest.mark.parametrize("name", ["prefill_time", "prefill_memory"])
def test_nothing_timed_is_said(name, tmp_path):
    """Broken: an empty figure instead of the command that makes its table."""
    dense = "\n".join(ROWS.splitlines()[:3]) + "\n"
    with pytest.raises(ValueError, match=r"tests/gpu/prefill\.sh"):
        plugins.load("figures", name).draw(study(tmp_path, dense))
