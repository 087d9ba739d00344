"""curves.py STORE...: the trainings of stores, each curve held against the first one's, and their speeds.

Exits with 1 where a loss is off by more than TOLERANCE, since sums in another order, and Muon's bfloat16, change that
much; or off at all from the first training on as many ranks, whose sums have the same order.
"""

import statistics
import sys
from pathlib import Path

from lacuna.results.record import Record
from lacuna.results.store import Store

TOLERANCE = 0.02


def off(record: Record, first: Record) -> float:
    """The largest difference of losses.

    Raises:
        SystemExit: the curves have other points.
    """
    if [p["step"] for p in record.samples] != [p["step"] for p in first.samples]:
        raise SystemExit(f"{record.key} has other points than {first.key}: not the same training")
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(record.samples, first.samples, strict=True))


def main(stores: list[str]) -> int:
    """One line for each training."""
    records = [(store, r) for store in stores for r in Store(Path(store)).records() if r.cell.task.name == "train"]
    wrong = [r.reason for _, r in records if r.status != "ok"]
    if wrong or not records:
        raise SystemExit(f"no curve to compare: {'; '.join(wrong) or 'there is no training'}")
    apart, alike = [], dict[int, Record]()
    for store, record in records:
        apart.append(off(record, records[0][1]))
        exact = off(record, alike.setdefault(record.cell.ranks, record)) == 0
        speed = statistics.median(p["tok_s"] for p in record.samples[1:] or record.samples)
        found = f"loss {record.samples[-1]['loss']:.4f}, off by {apart[-1]:.1e} at most, {speed / 1e6:.2f}M tokens/s"
        print(f"{store} {record.key} {record.cell.ranks} rank(s): {found}{'' if exact else ', NOT THE SAME AGAIN'}")
        apart.append(0.0 if exact or record.cell.task.args.get("sums") == "free" else float("inf"))
    return int(max(apart) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
