"""Figure landmark_time, from a table made by hand."""

import pytest

from lacuna.analysis import bench
from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame

HEAD = "op,case,twin,baseline,status,device,plan,median_ms,peak_mib,bytes,flops,ceiling_gb_s"
ROWS = """
attention,b2_h32_g32_s2048_block64_d128,,sdpa_flash,ok,cuda X,,0.27,16,1,1,4000
attention,b2_h32_g32_s2048_block64_d64,,sdpa_flash,ok,cuda X,,0.17,16,1,1,4000
attention_gradient,b2_h32_g32_s2048_block64_d64,,sdpa_flash,ok,cuda X,,0.5,16,1,1,4000
landmark_attention,b2_h32_g32_s2048_block64_d128,fused,,ok,cuda X,,0.25,17,1,1,4000
landmark_attention,b2_h32_g32_s2048_block64_d64,fused,,ok,cuda X,,0.15,17,1,1,4000
landmark_attention,b2_h32_g32_s4096_block64_d64,fused,,ok,cuda X,,0.55,17,1,1,4000
landmark_attention,b2_h32_g32_s4096_block51_d64,fused,,ok,cuda X,,7,17,1,1,4000
landmark_attention,b2_h32_g32_s4096_block64_d64,fused,,ok,cuda X,other tiles,99,17,1,1,4000
landmark_gradient,b2_h32_g32_s2048_block64_d64,fused,,ok,cuda X,,0.45,17,1,1,4000
landmark_gradient,b2_h32_g32_s4096_block64_d64,fused,,failed,cuda X,,77,17,1,1,4000
"""


def study(tmp_path, rows):
    path = tmp_path / "prefill_landmark_dims.csv"
    path.write_text(HEAD + rows, encoding="utf-8")
    return Study(to_frame([]), bench.read(path))


def test_each_dim_has_its_panels(tmp_path):
    """Broken: times of one head dim, block or pass are drawn among another's, or what failed is drawn at all."""
    figure = plugins.load("figures", "landmark_time").draw(study(tmp_path, ROWS))
    drawn = {
        axis.get_title(): {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines}
        for axis in figure.axes
        if axis.get_title()
    }
    assert drawn == {
        "forward, D = 64": {"sdpa_flash": [(2048, 0.17)], "landmark_attention": [(2048, 0.15), (4096, 0.55)]},
        "forward, D = 128": {"sdpa_flash": [(2048, 0.27)], "landmark_attention": [(2048, 0.25)]},
        "backward, D = 64": {"sdpa_flash": [(2048, 0.5)], "landmark_gradient": [(2048, 0.45)]},
        "backward, D = 128": {},
    }


def test_nothing_timed_is_said(tmp_path):
    """Broken: an empty figure instead of the command that makes its table."""
    dense = "\n".join(ROWS.splitlines()[:3]) + "\n"
    with pytest.raises(ValueError, match=r"tests/gpu/prefill\.sh"):
        plugins.load("figures", "landmark_time").draw(study(tmp_path, dense))
