"""Records of the task `decode_time` with what the cache held, as on a CPU; and with stages and allocated bytes, as on a GPU."""

PROMPT, ROW = 1000, 2048
STAGES = {"stage_matmul_ms": 1.0, "stage_score_ms": 0.2, "stage_select_ms": 0.1, "stage_gather_ms": 0.3}


def records(make):
    text = [held(make, "full", {}, 1.0, 1.0), held(make, "snapkv", {"keep": 0.25}, 0.25, 0.25)]
    return [*text, on_gpu(make, "full", {}, 1.0, {"stage_matmul_ms": 1.0, "stage_attend_ms": 0.9}), sparse(make)]


def sparse(make):
    return on_gpu(make, "loki", {"k": 0.25}, 0.25, STAGES)


def held(make, method, args, density, left):
    return timed(make, method, args, density, timeline(left), {})


def on_gpu(make, method, args, density, stages):
    line = [{**s, "allocated_bytes": 2**31 + s["held_bytes"]} for s in timeline(1.0)]
    return timed(make, method, args, density, line, stages, device="cuda")


def timeline(left, steps=20):
    """A cache that was cut to a share of the prompt, and grows by a row a step."""
    rows = [int(left * PROMPT) + n for n in range(steps + 1)]
    after = ["prefill", *["decode"] * steps]
    return [
        {"phase": "memory", "after": a, "tokens": PROMPT + n, "held_bytes": ROW * r}
        for n, (a, r) in enumerate(zip(after, rows, strict=True))
    ]


def timed(make, method, args, density, line, stages, **changes):
    times = [{"phase": "prefill", "ms": 40.0}, *({"phase": "decode", "ms": 2.0 + 0.01 * i} for i in range(9))]
    cell = make.cell(method, args, "decode_time", {"prompt": PROMPT}, **changes)
    metrics = {"decode_ms_median": 2.04, "ttft_ms": 40.0, **stages}
    return make.record(cell, metrics, [*times, *line], density)
