"""Makes the archive of all kernels on your own GPU: one command verifies and times them, and says what came of it.

    python3 tests/gpu/archive.py FOLDER [PART ...] [--tiny]

From the repository's root, with torch for CUDA and triton. Parts are those of `decode.sh` and `prefill.sh`, which tell what
they measure; without any: verify ops keys grid quick landmark columns thresholds, an hour or so at the most. Each runs by itself in
FOLDER/PART. What was finished is not run again, so the same command goes on where it was cut off; what was cut
off or failed is kept beside, under another name. FOLDER/archive then has the CSVs under the names of `results/archive`, and
a README.md with a line for each: the GPU, the command, the commit, and how many rows are verified and timed. With --tiny all
of it lies in FOLDER/trial.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

DECODE = ("verify", "ops", "keys", "grid", "8b", "long", "linear", "tp", "company")
MANY_ROWS = ("quick", "landmark", "columns", "thresholds", "scoring")
KERNELS = ("verify", "ops", "keys", "grid", "quick", "landmark", "columns", "thresholds")
DONE = "DONE"


def command(part: str, folder: Path, *, tiny: bool) -> list[str]:
    """The script that runs a part."""
    if part in DECODE:
        return ["bash", "tests/gpu/decode.sh", str(folder), part]
    return ["bash", "tests/gpu/prefill.sh", str(folder), part, *(["--tiny"] if tiny else [])]


def fresh(folder: Path) -> None:
    """Make the folder of a part; what an earlier try left there is kept under another name."""
    if folder.exists():
        tries = len(list(folder.parent.glob(f"{folder.name}.try*")))
        folder.rename(folder.with_name(f"{folder.name}.try{tries + 1}"))
    folder.mkdir(parents=True)


def run(part: str, folder: Path, *, tiny: bool) -> bool:
    """Run a part, unless it is finished; whether it now is."""
    if (folder / DONE).exists():
        print(f"== {part}: finished before", flush=True)
        return True
    fresh(folder)
    started, made = time.time(), {"day": time.strftime("%Y-%m-%d"), "gpu": name_of_gpu(tiny=tiny), "commit": commit()}
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # the scripts' python3 is this one
    environment = {"GPU": made["gpu"], **os.environ, **own, **({"TINY": "1"} if tiny else {})}
    done = subprocess.run(command(part, folder, tiny=tiny), env=environment, check=False).returncode == 0
    print(f"== {part}: {'finished' if done else 'FAILED'} after {time.time() - started:.0f} s", flush=True)
    if done:
        (folder / DONE).write_text(json.dumps(made), encoding="utf-8")
    return done


def told(*words: str) -> str:
    """What a command prints, or nothing; nothing, too, where there is no such command."""
    found = shutil.which(words[0])
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() if found else ""


def commit() -> str:
    """The commit of the tree, and whether that is what runs."""
    changed = told("git", "status", "--porcelain", "--untracked-files=no")
    return (told("git", "rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def name_of_gpu(*, tiny: bool) -> str:
    """The GPU's name without its maker's; a trial has none, whatever the machine."""
    return "CPU trial" if tiny else torch.cuda.get_device_name().removeprefix("NVIDIA ")


def statuses(path: Path) -> str:
    """How many rows of a CSV have which status."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8") as file:
        counted = Counter(row.get("status") or "ok" for row in csv.DictReader(file))
    return ", ".join(f"{number} {status}" for status, number in sorted(counted.items()))


def collect(out: Path, *, tiny: bool) -> list[str]:
    """Copy the CSVs of finished parts under the names of an archive; a line of a table for each."""
    lines = []
    for part in (part for part in DECODE + MANY_ROWS if (out / part / DONE).exists()):
        made = json.loads((out / part / DONE).read_text(encoding="utf-8"))
        source = " ".join(command(part, Path("FOLDER"), tiny=tiny)[1:])
        for path in sorted((out / part).glob("*.csv")):
            name = f"{made['day']}-{made['gpu'].replace(' ', '-').lower()}-{path.stem.replace('_h200', '').replace('_', '-')}.csv"
            shutil.copyfile(path, out / "archive" / name)
            lines.append(f"| `{name}` | {made['gpu']} | `{source}`, commit {made['commit']}: {statuses(path)} |")
    return lines


def main(words: list[str]) -> int:
    """Run the parts, collect what they made; the exit code."""
    tiny = "--tiny" in words
    folder, *parts = [word for word in words if word != "--tiny"] or [""]
    parts = parts or list(KERNELS)
    unknown = [part for part in parts if part not in DECODE + MANY_ROWS]
    if not folder or folder.startswith("-") or unknown:
        print(f"archive.py FOLDER [PART ...] [--tiny]; parts: {' '.join(DECODE + MANY_ROWS)}", file=sys.stderr)
        return 2
    if not tiny and not torch.cuda.is_available():
        print("expected a CUDA GPU, there is none: --tiny tries the commands on a CPU, timing nothing", file=sys.stderr)
        return 2
    out = Path(folder).resolve() / ("trial" if tiny else "")  # apart, so that nobody takes it for a measurement
    failed = [part for part in parts if not run(part, out / part, tiny=tiny)]
    (out / "archive").mkdir(exist_ok=True)
    table = "\n".join(["| file | where | what |", "|---|---|---|", *collect(out, tiny=tiny)])
    (out / "archive" / "README.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    if failed:
        print(f"not finished: {' '.join(failed)}; their logs are in {out}; the same command tries them again")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
