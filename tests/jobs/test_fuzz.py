"""Whatever is in a sweep file, it gives a Sweep or a SweepError."""

import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lacuna.jobs.plan import plan
from lacuna.jobs.sweep import Sweep, SweepError, read
from lacuna.results.store import Store

GOOD = """
name: demo
model: [pocket, {path: ../root/models/zoo/pocket}, {repo: a/b, revision: main}]
method: &m
  - full
  - topk: {k: [0.25, 2], sharp: 1}
  - loki: {k: 0.25, d: [0.25, 4], layers: [[1], [2, 3]], basis: {corpus: calibration, rotary: [pre, post]}}
task: [{perplexity: {window: 64}}, {needle: {length: [512, 1024]}}]
dtype: [float32, bfloat16]
device: cpu
ranks: 2
prefill: dense
query_aware: false
seed: [0, 1]
zip: [[dtype, seed]]
exclude: [{method: full, task: perplexity}, {task: {needle: {length: [512]}}, seed: 0}]
blocks: [{method: topk}, {task: needle, zip: [[method, seed]]}]
"""
WORDS = ["model", "method", "task", "pocket", "full", "topk", "loki", "k", "d", "basis", "needle", "length", "seed",
         "ranks", "zip", "exclude", "blocks", "name", "path", "repo", "<<", "method.topk.k", "=", "", "\0"]  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(WORDS)
LEAVES = LEAVES | st.dates() | st.binary(max_size=4)
KEYS = st.sampled_from(WORDS) | st.text(max_size=5) | st.integers()
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def holds(data: bytes, overrides: tuple[str, ...] = ()) -> None:
    path = Path("fuzz.yaml")
    path.write_bytes(data)
    try:
        found = read(path, Path("store"), overrides)
    except SweepError as error:
        told = error.errors
    else:
        told = (f"{found.name}: cells",)
        assert isinstance(found, Sweep)
        plan(found, Store("store")).to_json()
    assert told
    assert all(": " in line and "\n" not in line for line in told)


@MANY
@given(text=st.text(max_size=200) | st.binary(max_size=200))
def test_any_bytes(root, text):
    """A file that is no YAML would end in a traceback."""
    holds(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))


@MANY
@given(tree=st.dictionaries(KEYS, TREES, max_size=8))
def test_any_tree(root, tree):
    """YAML that is no sweep would end in a traceback."""
    holds(yaml.safe_dump(tree).encode())


@MANY
@given(data=st.data())
def test_a_sweep_with_one_value_replaced(root, data):
    """A value of the wrong kind, anywhere, would end in a traceback."""
    tree = yaml.safe_load(GOOD)
    where = data.draw(st.sampled_from(list(places(tree))))
    parent = tree
    for step in where[:-1]:
        parent = parent[step]
    parent[where[-1]] = data.draw(TREES)
    holds(yaml.safe_dump(tree).encode())


@MANY
@given(seed=st.integers(0, 2**32))
def test_a_sweep_with_lines_and_letters_moved(root, seed):
    """A slip of the hand would end in a traceback."""
    dice, text = random.Random(seed), list(GOOD)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(text))
        text[at : at + dice.randint(0, 3)] = dice.choice(
            ["", " ", ":", "[", "]", "{", "}", "-", "&m", "*m", "!!int ", "'", "\n", "0", "!", "%"]
        )
    holds("".join(text).encode())


@MANY
@given(
    text=st.text(max_size=20)
    | st.builds("{}={}".format, st.sampled_from(["ranks", "seed", "dtype"]), st.text(max_size=8))
)
def test_any_override(root, text):
    """A wrong --set would end in a traceback."""
    holds(b"model: pocket\nmethod: full\ntask: needle\n", (text,))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
        "a: &a {k: 1}\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(12)),
        "&a {<<: *a}",
        "? *x\n: 1",
        "? &a [*a]\n: 1",
        'model: "\\UFFFFFFFF"',
        'model: "\\ud800"\nmethod: "\\ud800"\ntask: full',
        "seed: !!int ''",
        "seed: !!bool x",
        "seed: !!timestamp x",
        "seed: !!python/object:os.system x",
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 5000,
        "model: '" + "x" * 5000 + "'",
        "model: {path: '" + "x" * 5000 + "'}",
        "model: ../../../etc/passwd",
        "%YAML 9.9\n---\nmodel: x",
        "--- 1\n--- 2",
    ],
)  # fmt: skip
def test_traps_of_yaml(root, text):
    """A file made to hurt would take all memory, run code or end in a traceback."""
    with pytest.raises(SweepError):
        read_text(text)


def read_text(text):
    path = Path("trap.yaml")
    path.write_text(text, encoding="utf-8")
    return read(path, Path("store"))


def places(tree, above=()):
    """The way to each value of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, child in items:
        yield (*above, step)
        yield from places(child, (*above, step))
