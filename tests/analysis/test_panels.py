"""Which methods and tasks stand in which panel, and what a panel says of what it holds together."""

from collections import Counter

import numpy as np
import pytest

from lacuna.analysis import redraw, style
from lacuna.analysis.points import points
from lacuna.analysis.render import terminal_table
from lacuna.results import plugins
from lacuna.results.frame import to_frame

MANY = sorted(set(plugins.names("methods")) - {"full"})[:16]


def many(make, **changes):
    """Dense and sixteen methods at two budgets."""
    make_one = [make.record(make.cell(m, {"keep": k}, "perplexity", **changes), {"perplexity": 9.0 + i + k}, [], k)
                for i, m in enumerate(MANY) for k in (0.25, 0.5)]  # fmt: skip
    return [make.record(make.cell("full", {}, "perplexity", **changes), {"perplexity": 8.0}, []), *make_one]


def test_many_methods_are_dealt_to_several_panels(make):
    """Broken: a figure of sixteen methods shows the first eight of the alphabet, or sixteen in one panel."""
    figure = make.draw("accuracy_density", many(make))
    shown = [{c.get_label() for c in axis.containers} for axis in figure.axes]
    assert set.union(*shown) == set(MANY)
    assert sum(map(len, shown)) == len(MANY)
    assert max(map(len, shown)) < 8
    assert all(any(line.get_label() == "full (dense)" for line in axis.lines) for axis in figure.axes)


def test_panels_that_methods_are_dealt_to_have_one_scale(make):
    """Broken: a method looks as good as another one in the next panel because the axis is another."""
    for name in ("accuracy_density", "perplexity_budget"):
        scales = {axis.get_ylim() for axis in make.draw(name, many(make)).axes}
        assert len(scales) == 1
        low, high = scales.pop()
        assert low < 8
        assert high > 24


def test_each_of_many_methods_has_its_speed_up(make):
    """Broken: a table of eleven methods has a figure of seven of them, or panels whose heights say other gains."""
    steps = [(m, {"keep": k}) for i, m in enumerate(MANY[:11]) for k in ((0.25, 0.5) if i == 0 else (0.25,))]
    cells = [make.decode_time("full", {}, 1.0, n) for n in (256, 512)]
    cells += [make.decode_time(m, args, args["keep"], n) for m, args in steps for n in (256, 512)]
    axes = make.draw("speedup_context", cells).axes
    shown = [{c.get_label() for c in axis.containers} - {"full (dense)"} for axis in axes]
    assert sum(map(len, shown)) == len(set.union(*shown)) == len(steps)
    assert max(map(len, shown)) < style.MOST_LINES
    assert len({axis.get_ylim() for axis in axes}) == 1


def test_where_panels_are_many_the_others_are_counted(make):
    """Broken: dozens of panels, or methods that vanish without a word."""
    records = [r for ranks in (1, 2, 4, 8) for r in many(make, ranks=ranks)]
    figure = make.draw("accuracy_density", records)
    assert "8 of 17 methods" in figure.get_suptitle()


def test_needles_of_two_kinds_have_panels_of_their_own(make):
    """Broken: needles among one key and among four are averaged into one field."""
    cells = []
    for keys, score, length in ((1, 1, 256), (1, 1, 512), (4, 0, 256), (4, 0, 512)):
        asked = make.cell("full", {}, "needle", {"length": length, "keys": keys})
        samples = [{"length": length, "depth": 0.5, "repeat": 0, "score": score}]
        cells.append(make.record(asked, {"accuracy": float(score)}, samples))
    maps = [axis for axis in make.draw("needle_heatmap", cells).axes if axis.images]
    assert [np.unique(axis.images[0].get_array()).tolist() for axis in maps] == [[1.0], [0.0]]
    assert [axis.get_title().split("\n")[0] for axis in maps] == ["needle keys=1", "needle keys=4"]
    curves = make.draw("passkey_curve", cells).axes
    assert [axis.get_ylabel() for axis in curves] == ["needle keys=1: share found", "needle keys=4: share found"]


def test_every_method_has_a_map_before_one_has_two(make):
    """Broken: twelve panels of one method's budgets, and none of the others."""
    cells = [make.needle("topk", {"k": 0.01 * k}, 0.01 * k, 256) for k in range(1, 21)]
    cells += [make.needle("full", {}, 1.0, 256), make.needle("loki", {"k": 0.5}, 0.5, 256)]
    figure = make.draw("needle_heatmap", cells)
    titles = [axis.get_title().replace("\n", " ") for axis in figure.axes if axis.images]
    assert titles[:4] == ["full", "loki k=0.5", "topk k=0.2", "topk k=0.19"]


def test_lengths_that_are_one_number_are_said(make):
    """Broken: an accuracy over three lengths of prompts looks like that of one."""
    frame = to_frame([make.needle(m, a, d, n) for m, a, d in (("full", {}, 1.0), ("topk", {"k": 0.5}, 0.5))
                      for n in (256, 1024)])  # fmt: skip
    assert set(points(frame)["pooled"]) == {"length 256 to 1024"}
    assert "needle accuracy (length 256 to 1024)" in " ".join(terminal_table(frame).split())
    one = frame[frame["task.length"] == 256]
    assert set(points(one)["pooled"]) == {""}
    assert make.draw("accuracy_density", [make.needle(m, a, d, n) for m, a, d in (("full", {}, 1.0),
                     ("topk", {"k": 0.5}, 0.5)) for n in (256, 1024)]).axes[0].get_title().endswith("together")  # fmt: skip


def test_redraw_without_arguments_says_what_it_takes(capsys, tmp_path):
    """Broken: a traceback instead of the usage, or of the folder that is not there."""
    with pytest.raises(SystemExit, match="2"):
        redraw.main([])
    assert "the following arguments are required: archives, folder" in capsys.readouterr().err
    assert redraw.main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no archive" in capsys.readouterr().err
    assert redraw.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2


def test_methods_of_one_colour_stand_in_different_panels(make):
    """Broken: two curves of one panel are told apart by their markers alone, while the panel beside has that colour free."""
    cells = [make.decode_time("full", {}, 1.0, n) for n in (256, 512)]
    cells += [make.decode_time(m, {"keep": 0.25}, 0.25, n) for m in MANY[:11] for n in (256, 512)]
    axes = make.draw("speedup_context", cells).axes
    shown = [Counter(bar.lines[0].get_color() for bar in axis.containers) for axis in axes]
    assert len(shown) == 2
    for colour, number in sum(shown, Counter()).items():
        assert max(panel[colour] for panel in shown) == -(-number // len(shown))
