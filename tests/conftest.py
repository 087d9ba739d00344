"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before anything imports Triton.

This file is read before every test module; some of those import transformers, and transformers imports Triton.
"""

import json
import os
import time

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


USUAL_S = 0.15  # CPU time of `work` on the machine on which the bounds of times were set


def work():
    """Some of what Python does all day."""
    rows = [{"key": f"{i:08x}", "status": "ok", "args": {"keep": i / 7, "names": [str(i)]}} for i in range(20_000)]
    back = {row["key"]: row for row in map(json.loads, [json.dumps(row, sort_keys=True) for row in rows])}
    return sorted(back.values(), key=lambda row: (row["args"]["keep"], row["key"]))


@pytest.fixture
def pace():
    """How many times longer than there the CPU takes here and now, 1 at least: bounds of times are multiples of it."""
    took = []
    for _ in range(3):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return max(1.0, min(took) / USUAL_S)


@pytest.fixture
def outcome(capsys):
    """A function of what is typed: exit code, output and errors of the command, whether or not argparse ends it."""
    from lacuna import cli

    def ask(*argv):
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask
