"""Methods are told apart, with any colour vision, and legends fit."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from lacuna.analysis import style
from lacuna.results import plugins

# Machado, Oliveira and Fernandes 2009, whole dichromacy, of linear RGB
VISIONS = {
    "normal": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = (0.95047, 1.0, 1.08883)
ALIKE = ("o8hHp", "Dd", "*P")  # markers that a reader takes for each other at 4.5 points
APART = 30.0  # CIELAB; 2.3 is just noticeable side by side
KIN = [("loki", "loki_theta"), ("loki", "sparq"), ("topk", "sparq"), ("top_theta", "loki_theta"), ("topk", "top_theta"), ("loki", "pca_attn"),
       ("snapkv", "pyramidkv"), ("snapkv", "adakv"), ("h2o", "tova"), ("evict_then_select", "snapkv")]  # fmt: skip
PAIRS = list(itertools.combinations(plugins.names("methods"), 2))


def lab(colour, vision):
    """CIELAB of `#rrggbb` as that vision sees it."""
    coded = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(VISIONS[vision]) @ linear, 0, 1) / WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a, b):
    """The distance of two colours for the vision that tells them apart the least."""
    return min(float(np.linalg.norm(lab(a, v) - lab(b, v))) for v in VISIONS)


def alike(a, b):
    return a == b or any(a in kin and b in kin for kin in ALIKE)


def test_the_distance_of_colours_is_right():
    """Broken: the check of colours cannot fail (black and white are 100 apart, red and green alike to a few)."""
    assert distance("#000000", "#ffffff") == pytest.approx(100, abs=0.1)
    assert lab("#ff0000", "normal") == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert distance("#8c5f00", "#5f7500") < APART < np.linalg.norm(lab("#ff0000", "normal") - lab("#00ff00", "normal"))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_all_methods_are_told_apart(a, b):
    """Broken: two methods of this version look alike in figures, for somebody."""
    ours, theirs = style.look(a), style.look(b)
    apart = distance(ours.colour, theirs.colour)
    assert ours != theirs
    assert apart >= APART or not alike(ours.marker, theirs.marker), (ours, theirs, apart)


@pytest.mark.parametrize(("a", "b"), KIN)
def test_kin_differ_in_colour_and_marker(a, b):
    """Broken: methods that stand in one comparison differ only in what print in grey, or a small mark, loses."""
    assert style.look(a).marker != style.look(b).marker
    assert style.look(a).colour != style.look(b).colour


def test_a_new_method_has_a_look_of_its_own(monkeypatch):
    """Broken: a new method looks like an old one or like another new one, or otherwise on another machine."""
    code = "from lacuna.analysis.style import look; print(look('quite_new'))"
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert new == str(style.look("quite_new"))
    fresh = [f"new{i}" for i in range(len(style.SPARE))]
    monkeypatch.setattr(style, "names", lambda _: [*style.LOOKS, *fresh])
    style._spared.cache_clear()
    looks = [style.look(name) for name in fresh]
    style._spared.cache_clear()
    assert len(set(looks)) == len(fresh)
    known = [*style.LOOKS.values(), *looks]
    for ours, theirs in itertools.combinations(known, 2):
        assert distance(ours.colour, theirs.colour) >= APART or not alike(ours.marker, theirs.marker)


def legend(width, *labels):
    with style.paper():
        figure = Figure(figsize=(width, 2))
        axis = figure.subplots()
        for label in labels:
            axis.plot([0, 1], [0, 1], label=label)
        style.legend(figure, [axis])
        figure.draw_without_rendering()
    box = figure.legends[0].get_tightbbox().transformed(figure.dpi_scale_trans.inverted())
    return figure, box


def test_one_long_name_does_not_make_a_column_of_a_legend():
    """Broken: a legend of eight methods is as tall as its figure because one of them has a long name."""
    long = "loki keep=0.25 d=0.25 basis.corpus=calibration basis.rotary=post"
    figure, box = legend(7.0, *(f"method{i}" for i in range(7)), long)
    rows = {round(text.get_window_extent().y0) for text in figure.legends[0].get_texts()}
    assert len(rows) <= 2
    assert box.x0 >= 0
    assert box.x1 <= 7.0


def test_a_name_longer_than_the_figure_is_wrapped():
    """Broken: a name reaches beyond the page."""
    _, box = legend(3.4, "a name of many words that " * 4, "short")
    assert box.x0 >= 0
    assert box.x1 <= 3.4
