"""What the command line prints: lists, plans, counts and failures as text."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..results import plugins
from ..results.cell import Cell
from ..results.fields import problem
from ..results.record import STATUSES
from ..results.store import Store
from .plan import Plan, cells_in
from .sweep import SETTINGS

TAIL = 15
PAPER = re.compile(r"arXiv (\d{4}\.\d{5})")
STATES = (*STATUSES, "todo", "waits")


def catalogue(kind: str) -> list[dict[str, Any]]:
    """Every plug-in of a kind with its version, what it is, and its arguments."""
    about = _about_file if kind in ("models", "sites") else _about_plugin
    return [about(kind, name) for name in plugins.names(kind)]


def _about_plugin(kind: str, name: str) -> dict[str, Any]:
    plugin = plugins.describe(kind, name)
    fields = [_field(one) for one in plugin.fields]
    about = {"name": name, "version": plugin.version, "text": plugin.summary, "fields": fields}
    if kind != "methods":
        return about
    papers = dict.fromkeys(PAPER.findall(plugins.source(kind, name).read_text(encoding="utf-8")))
    return about | {"shape": plugin.constants.get("shape", ""), "papers": list(papers)}


def _field(one: plugins.Field) -> dict[str, Any]:
    marks = [str(mark) for mark in getattr(one.kind, "__metadata__", ())]
    # the argument's own description fits no argument, so the problem says what would
    about = {"name": one.name, "type": problem(one, one.kind) or "anything", "marks": marks}
    return about | ({"required": True} if one.default is plugins.REQUIRED else {"default": one.default})


def _about_file(kind: str, name: str) -> dict[str, Any]:
    text = plugins.source(kind, name).read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    first = text.split("\n", 1)[0].lstrip("# ") if text.startswith("#") else ""
    raw = raw if isinstance(raw, dict) else {}
    return {"name": name, "version": 1, "text": str(raw.get("text", first)), "fields": [], "content": raw}


def listing(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each plug-in; for a method a second one with its shape, papers and defaults."""
    width = max((len(row["name"]) for row in rows), default=0)
    lines = []
    for row in rows:
        lines.append(f"{row['name']:{width}}  v{row['version']}  {row['text']}")
        if "shape" in row:
            lines.append(" " * width + "      " + "; ".join(filter(None, _facts(row))))
    return "\n".join(lines) or "none"


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    """Shape, papers, and the defaults that are set."""
    yield row["shape"]
    yield ", ".join(f"arXiv {number}" for number in row["papers"])
    given = ((one["name"], one.get("default")) for one in row["fields"])
    yield ", ".join(f"{name}={value}" for name, value in given if value not in (None, {}))


def status(plan: Plan) -> str:
    """Counts per state, per method and task, and what is missing."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for cell in plan.cells:
        counts.setdefault((cell.method.name, cell.task.name), Counter())[plan.states[cell.key]] += 1
    used = [state for state in (*STATES, "idle") if any(count[state] for count in counts.values())]
    rows = [[method, task, *(str(count[s]) for s in used)] for (method, task), count in counts.items()]
    total = [str(plan.counts().get(state, 0)) for state in used]
    text = _columns([["method", "task", *used], *rows, ["all", "", *total]])
    missing = [f"  {cell.key}  {named(cell)}" for cell in plan.todo[:TAIL]]
    more = f"  and {len(plan.todo) - TAIL} more" if len(plan.todo) > TAIL else ""
    return "\n".join([text, f"{len(plan.todo)} to run", *missing, *filter(None, [more])])


def named(cell: Cell) -> str:
    """A cell by what is not the default, budgets always."""
    method, task = plugins.label("methods", cell.method), plugins.label("tasks", cell.task)
    usual = Cell(cell.model, cell.method, cell.task)
    settings = [f"{k}={getattr(cell, k)}" for k in SETTINGS if getattr(cell, k) != getattr(usual, k)]
    return " x ".join([cell.model.name, method, task, *filter(None, [" ".join(settings)])])


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def failures(plan: Plan, store: Store, prefix: str) -> Iterator[str]:
    """Each cell that has not ended well: what it is, why, and the ends of its trace and log.

    Raises:
        ValueError: no cell of the sweep has a key that begins so.
    """
    if not any(cell.key.startswith(prefix) for cell in plan.cells):
        raise ValueError(f"no cell of {plan.name} has a key that begins with {prefix!r}; `lacuna plan --json` has them")
    wanted = [cell for cell in plan.cells if cell.key.startswith(prefix)]
    for cell in wanted:
        state = plan.heads[cell.key].status if cell.key in plan.heads else plan.states[cell.key]
        if prefix or state not in ("ok", "todo", "idle"):
            yield _failure(cell, state, plan, store)


def _failure(cell: Cell, state: str, plan: Plan, store: Store) -> str:
    lines = [
        f"{cell.key}  {named(cell)}",
        f"  {state}: {plan.reason(cell) or 'no record yet' * (cell.key not in plan.heads)}",
    ]
    if cell.key in plan.heads:
        record = store.get(cell.key)
        lines += [f"  | {line}" for line in record.trace.splitlines()[-TAIL:]]
        for log in _logs(record.provenance, store):
            lines += [f"  log {log}", *(f"  > {line}" for line in _tail(log))]
    return "\n".join(line.rstrip(": ") for line in lines)


def _logs(provenance: Mapping[str, Any], store: Store) -> list[Path]:
    """The log that the record names, else those of its Slurm job."""
    if named := provenance.get("log"):
        return [Path(named)] if Path(named).is_file() else []
    slurm = provenance.get("slurm") or {}
    array = [slurm.get(name) for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    job = "_".join(map(str, array)) if all(array) else slurm.get("SLURM_JOB_ID")
    return sorted(store.logs().glob(f"{job}/*_log.err")) if job else []


def _tail(log: Path) -> list[str]:
    with log.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip() for line in deque(file, TAIL)]


def wrong_ranks(cells: Iterable[Cell], size: int, sweep: str) -> list[str]:
    """For each number of ranks other than ours, how many cells want it, and how to run them."""
    counts = Counter(cell.ranks for cell in cells if cell.ranks != size)
    return [
        f"{cells_in(n)} for {ranks} rank{'s' * (ranks > 1)}, this run has {size}: "
        f"`{f'mpirun -np {ranks} ' * (ranks > 1)}lacuna run {sweep}`, or --set ranks={size}"
        for ranks, n in sorted(counts.items())
    ]


def pretty(value: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=1, default=str)


def compact(value: Any) -> str:
    """JSON for programs: a plan has tens of thousands of lines otherwise, and takes seconds to lay out."""
    return json.dumps(value, separators=(",", ":"))
