"""Sweeps of one training cut to a machine's time: `probe` tries each length for some steps, `fit` takes what was seen.

budget.py probe SWEEP TO LAUNCH; budget.py fit SWEEP TO LAUNCH SECONDS RECORDS: RECORDS is the CSV that `lacuna collect`
made of the probe, SECONDS what the training may take without start and end. Both write the sweep TO, with other `tokens`
and the way that passes are launched (`graph` or `call`).
"""

import csv
import sys
from pathlib import Path

import yaml

PROBED, POINTS = 60, 4  # steps and points of the curve of each length
KEPT = 0.94  # of the time: a GPU that warms up, or neighbours, may be slower later


def _training(sweep: dict) -> dict:
    task: dict = sweep["task"]["train"]
    return task


def probe(sweep: dict) -> dict:
    """Equal shares of few steps; nothing else that a compiled kernel depends on is changed."""
    task = _training(sweep)
    count = len(task["lengths"])
    task |= {"tokens": PROBED * count * task["step_tokens"], "shares": [1 / count] * count, "heldout_windows": 1}
    task["points"] = POINTS * count
    return sweep | {"name": sweep["name"] + "-probe"}


def fit(sweep: dict, seconds: float, records: list[dict]) -> dict:
    """As many tokens as the time has room for, each stage at the speed of its length."""
    task = _training(sweep)
    (record,) = records
    speeds = [float(record[f"tok_s_{length}"]) for length in task["lengths"]]
    each = sum(share / speed for share, speed in zip(task["shares"], speeds, strict=True))
    steps = int(KEPT * seconds / each / task["step_tokens"])
    if steps < 100:
        raise SystemExit(f"{seconds:.0f} s have room for {steps} steps only: this training needs more time")
    task["tokens"] = steps * task["step_tokens"]
    return sweep


def main() -> None:
    """Write the sweep, say what it will do."""
    verb, source, target, launch, *more = sys.argv[1:]
    sweep = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    if verb == "fit":
        with Path(more[1]).open(encoding="utf-8") as file:
            made = fit(sweep, float(more[0]), list(csv.DictReader(file)))
    else:
        made = probe(sweep)
    _training(made)["launch"] = launch
    Path(target).write_text(yaml.safe_dump(made, sort_keys=False), encoding="utf-8")
    print(f"{target}: {_training(made)['tokens'] / 1e6:.1f}M tokens")


if __name__ == "__main__":
    main()
