"""What arguments of a plug-in must not be together: sentences that a sweep is told before anything runs.

A plug-in's `__post_init__` calls them. `plugins.check` runs that method without importing the plug-in: it may use the
arguments, these functions, and the module's literal constants.
"""

from __future__ import annotations

from typing import Any

BUDGET = ("keep", "rows", "bytes")


def name_of(args: Any) -> str:
    """The plug-in's name: that of its file."""
    return type(args).__module__.rsplit(".", 1)[-1]


def refuse(args: Any, *, when: bool, why: str) -> None:
    """Refuse arguments.

    Raises:
        ValueError: `when` holds.
    """
    if when:
        raise ValueError(f"{name_of(args)}: {why}")


def one_budget(args: Any) -> None:
    """Exactly one of the words of a budget.

    Raises:
        ValueError: none, or several.
    """
    given = [f"{word} = {getattr(args, word)}" for word in BUDGET if getattr(args, word) is not None]
    refuse(args, when=len(given) != 1, why=f"give one of {', '.join(BUDGET)}, got {' and '.join(given) or 'none'}")


def one_budget_for_all_layers(args: Any) -> None:
    """A budget that the method itself spreads over the layers.

    Raises:
        ValueError: it is a list.
    """
    lists = [word for word in BUDGET if isinstance(getattr(args, word), (list, tuple))]
    refuse(args, when=bool(lists), why=f"one budget is spread over all layers: {' '.join(lists)} is one number")


def rows_above(args: Any, least: int, why: str) -> None:
    """A count of rows, in every layer, above what the method cannot do without.

    Raises:
        ValueError: it is not; `why` says what they leave nothing for.
    """
    rows = args.rows if isinstance(args.rows, (list, tuple)) else [args.rows]
    small = [count for count in rows if count is not None and count <= least]
    refuse(args, when=bool(small), why=f"rows = {min(small, default=0)} {why}: raise rows")


def observed(args: Any) -> None:
    """Methods with an observation window.

    Raises:
        ValueError: an even kernel, a budget that is all window, or a group to join where there is none.
    """
    one_budget(args)
    even = args.kernel % 2 == 0
    refuse(args, when=even, why=f"a pooling kernel is odd, got {args.kernel}: try {args.kernel + 1}")
    rows_above(args, args.window, f"leaves nothing beside the window of {args.window}")
    alone = args.heads == "query" and args.group != "mean"
    refuse(args, when=alone, why="with heads: query no group is joined: leave group at its default")


def drawn(args: Any) -> None:
    """Completions that pass@k is estimated from (`draws`, `ks`, `temperature`).

    Raises:
        ValueError: a k beyond the draws, or several draws that would all be equal.
    """
    most, greedy = max(args.ks), args.draws > 1 and args.temperature == 0
    refuse(args, when=most > args.draws, why=f"pass@{most} needs as many draws, got draws: {args.draws}: raise draws")
    refuse(args, when=greedy, why=f"{args.draws} greedy draws are one draw: give a temperature, or draws: 1")
