"""The curves of trainings."""

from lacuna.analysis.study import Study
from lacuna.results import plugins
from lacuna.results.frame import to_frame


def test_curves_are_those_of_the_records(make):
    """Broken: a run that diverged, or slowed down, looks like one that did not."""
    found = make.example("training").records(make)
    figure = plugins.load("figures", "training_curves").draw(Study(to_frame(found)))
    loss, speed = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [p["loss"] for p in found[0].samples]
    assert loss.lines[1].get_ydata().tolist() == [p["text_loss"] for p in found[0].samples]
    assert speed.lines[0].get_xdata().tolist() == [float(n) for n in range(1, 11)]
    assert speed.lines[1].get_xdata() == [5.0, 5.0]
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"pocket seed=0", "pocket seed=1"}
