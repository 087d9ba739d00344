"""Numbers as people read them: the same in every table, figure and sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float, digits: int = 4) -> str:
    """So many significant digits, at most three behind the point; `–` for a number that is not there."""
    if math.isnan(value) or math.isinf(value):
        return "–" if math.isnan(value) else "∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    behind = digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1
    return f"{value:.{min(max(behind, 0), 3)}f}"


def signed(value: float) -> str:
    """A difference: its sign is always there."""
    return ("+" if value > 0 else "−" if value < 0 else "±") + number(abs(value))


def times(value: float) -> str:
    """A ratio such as a speed-up."""
    return "–" if math.isnan(value) else f"{value:.2f}×"


def span(values: Sequence[float]) -> str:
    """One number where all agree to two digits, else from-to; over tasks a share may differ."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return "–"
    low, high = f"{min(known):.2f}", f"{max(known):.2f}"
    return low if low == high else f"{low}–{high}"


def plural(count: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def over_all(count: int) -> str:
    """What Holm's correction is over."""
    return "the one comparison here" if count == 1 else f"all {plural(count, 'comparison')} here"


def letter(index: int) -> str:
    """A, b, ... z, aa, ab, ... as marks of footnotes (lower case)."""
    head, last = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + last)
