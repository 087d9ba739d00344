"""Verifies all kernels for many query rows at once, each in a process of its own, then times the main shapes in turn.

    python3 tests/gpu/prefill_quick.py FOLDER [JOB ...] [--tiny]

Without jobs all but those of texts of more than 32768 rows (`OPERATION_long`).

Compiling is what takes long at first, so it is done side by side; while one job is timed, the others wait. A job that
fails, hangs or kills its context costs the others nothing. Lines come to FOLDER/prefill_quick.csv as they are known.
"""

import csv
import sys
from functools import partial
from pathlib import Path

import prefill
from turns import run_in_turns

BLOCK = 64
LENGTHS = (24, 40) if prefill.TINY else (2048, 4096, 8192, 16384)
HEADS, DIM = (2, 32) if prefill.TINY else (32, 128)
# Seconds for what is done side by side, and for the timing of one job.
PREPARE_S, TIME_S = (500, 300) if prefill.TINY else (120, 45)


class Unkept:
    """Prints lines and keeps none: times that were taken beside other work are no results."""

    def put(self, line):
        """Print a line."""
        print(f"{line.op} {line.baseline or line.twin} {line.case} {line.plan} {line.status} {line.reason}")
        return line


def checks(writer):
    """Verify landmark attention on all of its test cases: more kernels than are timed."""
    prefill.verified(writer, ("landmark_attention", "landmark_gradient"))
    yield


def landmark(writer, lengths, *, tries, dim=DIM, block=BLOCK):
    """Compile at a short length, then time beside dense attention; each shape is verified before it is timed."""
    block, batch = (8, 1) if prefill.TINY else (block, 2)
    if not prefill.TINY:
        prefill.landmark_case(Unkept(), (block, 512, batch, HEADS, HEADS, dim), passed=True, tries=tries)
    yield
    for rows in lengths:
        prefill.landmark_case(writer, (block, rows, batch, HEADS, HEADS, dim), passed=True, tries=tries)


def operation(name, writer, **rows):
    """Verify one of the other operations, then time it beside dense attention at these lengths."""
    passed = prefill.verified(writer, (name,))
    yield
    prefill.measured(writer, name, passed=passed, **rows)


JOBS = {
    "checks": checks,
    "landmark": partial(landmark, lengths=LENGTHS, tries=False),
    "landmark_64": partial(landmark, lengths=LENGTHS, tries=False, dim=32 if prefill.TINY else 64),
    "landmark_96": partial(landmark, lengths=LENGTHS, tries=False, dim=32 if prefill.TINY else 96),
    "landmark_block_128": partial(landmark, lengths=LENGTHS, tries=False, block=128),
    "tries": partial(landmark, lengths=LENGTHS[1:2], tries=True),
} | {
    name: partial(operation, name, most_rows=32768)
    for name in ("column_sums", "window_votes", "kth_score", "threshold_prefill", "chosen_prefill", "held_prefill",
                 "evict_walk", "sparq_rows", "linear_prefill", "landmark_retrieve")
}  # fmt: skip
# Texts of more rows, which only those are timed at who ask for it: dense attention alone takes half a second.
LONG = {
    f"{name}_long": partial(operation, name, least_rows=32769)
    for name in ("column_sums", "window_votes", "kth_score", "threshold_prefill", "chosen_prefill", "sparq_rows")
}


def steps(name: str, folder: Path):
    """What the process of a job does."""
    return (JOBS | LONG)[name.removeprefix("prefill_quick_")](prefill.Writer(folder, "quick", mode="a"))


def table(path: Path) -> bool:
    """Print what failed and what was timed; whether nothing failed."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    wrong = [line for line in lines if line["status"] != "ok"]
    for line in wrong:
        print(f"FAILED {line['op']} {line['case']} {line['twin']} {line['plan']} {line['reason'][:110]}")
    checks = [line for line in lines if line["twin"] == "verify"]
    print(f"{len(checks)} cases verified, {sum(line['status'] == 'ok' for line in checks)} passed")
    for line in lines:
        if line["median_ms"]:
            flop_s = int(line["flops"]) / float(line["median_ms"]) / 1e9
            print(f"{line['op']:19}{line['baseline'] or line['twin']:11}{line['case']:32}{line['plan'][:44]:44}"
                  f"{float(line['median_ms']):9.3f} ms{flop_s:5.0f} TFLOP/s{float(line['peak_mib']):7.0f} MiB")  # fmt: skip
    return not wrong


def main(folder: Path, names: list[str]) -> bool:
    """Run the jobs; whether all ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    prefill.Writer.begin(folder, "quick")
    ended = run_in_turns(steps, [f"prefill_quick_{name}" for name in names], folder, PREPARE_S, TIME_S)
    return table(folder / "prefill_quick.csv") and not any(ended.values())


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tiny"]
    sys.exit(0 if main(Path(words[0]), words[1:] or list(JOBS)) else 1)
