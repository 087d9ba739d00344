"""What a cache holds while its texts grow, against sizes worked out by hand."""

import pytest
from transformers import AutoConfig

from lacuna.results.plugins import ROOT

CASES = [  # engine, method, rows that are left of a prompt of 64, rows that a step adds
    ("dynamic", "full", 64, 1),
    ("dynamic", "{snapkv: {rows: 24, window: 8}}", 24, 1),
    ("dynamic", "{streaming_llm: {rows: 16}}", 18, 0),  # the keys of 4 sinks are held unrotated too
    ("static", "{topk: {rows: 8}}", 64, 1),
    ("static", "{streaming_llm: {rows: 16}}", 18, 0),
    ("static", "{h2o: {rows: 16}}", 16 + 16 / 128, 0),  # a mark is a number beside the 128 of a row
    ("static", "{tova: {rows: 16}}", 16 + 16 / 128, 0),
]


@pytest.mark.parametrize(("engine", "method", "left", "more"), CASES)
def test_readings_are_the_bytes_of_the_rows(sweep, run, engine, method, left, more):
    """A timeline would show another cache than that of the step, or a step that was not the text's."""
    args = f"prompt: 64, steps: 3, warmup: 2, prefills: 1, batch: 2, engine: {engine}"
    records, _ = run(sweep(f"method: {method}\ntask: {{decode_time: {{{args}}}}}\n"))
    (record,) = records.values()
    assert record.status == "ok", record.reason
    readings = [s for s in record.samples if s["phase"] == "memory"]
    config = AutoConfig.from_pretrained(ROOT / "models" / "zoo" / "pocket")
    row = 2 * 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim  # texts, k and v, float32
    assert [s["after"] for s in readings] == ["prefill", *["decode"] * 5]
    tokens = [s["tokens"] for s in readings]
    assert tokens == [64, 66, 67, 68, 69, 70]  # the step that is held against float64 is the text's first
    assert [s["held_bytes"] for s in readings] == [row * (left + more * (n - 64)) for n in tokens]
    assert readings[-1]["held_bytes"] <= record.ledger["bytes_held"]
