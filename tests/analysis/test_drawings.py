"""Figures as files: the same from one process and from several."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from lacuna.analysis import drawings
from lacuna.analysis.sources import of_frame
from lacuna.analysis.study import Study
from lacuna.analysis.style import paper

SOME = ["accuracy_density", "energy", "needle_heatmap"]


def drawn(study, wanted, workers):
    with drawings.begun(study, wanted, workers) as coming:
        return coming()


def test_two_processes_draw_the_same_bytes(demo):
    """Broken: a figure depends on what the process drew before it, or several processes lose one or change the order."""
    alone = drawn(Study(demo), SOME, 1)
    assert [d.name for d in alone] == SOME
    assert [bool(d.images) for d in alone] == [True, False, True]
    assert "needs a cell of decode_time" in alone[1].missing
    assert drawn(Study(demo), SOME, 2) == alone


@pytest.mark.parametrize("own", [{}, {"figure.autolayout": True}], ids=["plain", "another layout asked for"])
def test_a_figure_is_drawn_once_for_each_file(demo, own, monkeypatch):
    """Broken: half of a large report's time is spent on drawings that nobody sees, or a user's settings lay out anew."""
    drawn_to, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: (drawn_to.append(renderer), draw(self, renderer))[1])
    with rc_context(own):
        found = drawings.draw(Study(demo), "accuracy_density")
    assert found == drawings.draw(Study(demo), "accuracy_density")
    assert len(drawn_to) == 2 * len(found.images) == 2 * len(drawings.FORMATS)


def test_few_records_are_drawn_in_this_process(demo, monkeypatch):
    """Broken: a demo's report starts processes that take longer than its figures, or a node's every core is taken."""
    assert drawings.processes(of_frame(demo)) == 1
    monkeypatch.setattr(drawings, "MANY", len(demo))
    assert 1 <= drawings.processes(of_frame(demo)) <= drawings.MOST


def test_an_error_in_a_worker_is_told(demo):
    """Broken: a figure that breaks in another process is missing without a word, or the report waits forever."""
    with pytest.raises(ValueError, match="no_such_figure"):
        drawn(Study(demo), ["no_such_figure", "energy"], 2)


def test_an_error_of_the_caller_ends_the_drawing(demo, monkeypatch):
    """Broken: what is wrong with a table is told a minute later, when every figure has been drawn for nothing."""
    begun = []

    class Watched(ProcessPoolExecutor):
        def submit(self, *args, **kwargs):
            begun.append(super().submit(*args, **kwargs))
            return begun[-1]

    monkeypatch.setattr(drawings, "ProcessPoolExecutor", Watched)
    with pytest.raises(ValueError, match="the table"), drawings.begun(Study(demo), SOME * 9, 2):
        raise ValueError("the table")
    assert sum(one.cancelled() for one in begun) > len(SOME)


def test_a_worker_that_is_killed_is_one_sentence(demo, monkeypatch):
    """Broken: a report for which memory does not suffice ends in a traceback of concurrent.futures."""
    pools = []
    monkeypatch.setattr(
        drawings, "ProcessPoolExecutor", lambda *args: pools.append(ProcessPoolExecutor(*args)) or pools[0]
    )
    told = pytest.raises(ChildProcessError, match="was killed; is there too little memory")
    with told, drawings.begun(Study(demo), SOME, 2) as coming:
        os.kill(next(iter(pools[0]._processes)), signal.SIGKILL)
        coming()


def test_a_figure_without_room_gets_more(recwarn):
    """Broken: a figure of one row under a title of many lines is drawn without its labels, cut off at its edges."""
    with paper():
        figure = Figure(figsize=(3.0, 0.9))
        axis = figure.subplots()
        axis.set_title("\n".join("lines"))
        drawings._lay_out(figure)
    assert figure.get_figheight() > 0.9
    assert axis.get_position().height > 0.05
    assert not recwarn.list


def test_a_figure_that_never_has_room_says_so():
    """Broken: a figure whose panels were given no room is shown, cut off, as if it were whole."""
    with paper():
        figure = Figure(figsize=(3.0, 0.9))
        figure.subplots().set_title("\n".join("a title of far too many lines for it"))
        with pytest.raises(ValueError, match="no room for its panels"):
            drawings._lay_out(figure)
