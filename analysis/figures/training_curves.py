"""Loss of training over the tokens that were read, and how fast they were.

From the task `train`. Above: the loss that is minimised, in which planted answers weigh more, and, thin, that of text
that was not planted. Below: tokens a second; it falls where rows become longer (dotted), since attention grows with
their length. The first point of each length includes the compilation of its kernels.
"""

from __future__ import annotations

import itertools

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..inside import LINES, Row, heading, inside
from ..study import Study
from ..style import COLUMN, PALETTE, paper

NAMED = 60  # letters of a line's name


def draw(study: Study) -> Figure:
    """Two panels, a line for each training.

    Raises:
        ValueError: no training ended well.
    """
    found = inside(study, "train", "tokens", "length", "loss", "text_loss", "tok_s").to_dict("records")
    with paper():
        lines = sum(heading(row["where"], wide=NAMED).count("\n") + 1 for row in found)
        figure = Figure(figsize=(1.6 * COLUMN, max(4.2, 2.6 + 0.14 * lines)), layout="constrained")
        loss, speed = figure.subplots(2, 1, sharex=True)
        for number, row in enumerate(found):
            line = LINES[number // len(PALETTE) % len(LINES)]
            _line(loss, speed, row, PALETTE[number % len(PALETTE)], line)
        loss.set(ylabel="loss (nats a token)")
        speed.set(xlabel="tokens read (millions)", ylabel="tokens a second")
        speed.set_ylim(bottom=0)
        speed.yaxis.set_major_formatter(EngFormatter(sep=""))
        if len(found) == 1:
            loss.set_title(heading(found[0]["where"], wide=NAMED))
        handles, names = loss.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=1)
    return figure


def _line(loss: Axes, speed: Axes, row: Row, colour: str, line: str) -> None:
    curve = row["samples"]
    read = [point["tokens"] / 1e6 for point in curve]
    name = heading(row["where"], wide=NAMED)
    loss.plot(read, [p["loss"] for p in curve], color=colour, linestyle=line, label=name)
    loss.plot(read, [p["text_loss"] for p in curve], color=colour, linestyle=line, linewidth=0.5)
    speed.plot(read, [p["tok_s"] for p in curve], color=colour, linestyle=line)
    for before, after in itertools.pairwise(curve):
        if before["length"] != after["length"]:
            speed.axvline(before["tokens"] / 1e6, color=colour, linestyle=":", linewidth=0.8)
