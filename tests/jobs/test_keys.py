"""The identity of a cell stays what it is."""

from dataclasses import replace

import pytest

from lacuna.results.cell import Cell, Spec

MODEL = Spec("pocket", digest="0123456789abcdef", source="/somewhere")
PLAIN = Cell(MODEL, Spec("full"), Spec("perplexity", 1, {"window": 1024, "corpus": "prose"}, "fedcba9876543210"))
LOKI = Cell(
    MODEL,
    Spec("loki", 2, {"k": 0.25, "d": 16, "basis": {"corpus": "calibration"}}),
    Spec("needle", 1, {"length": 512}),
    dtype="bfloat16",
    device="cuda",
    ranks=2,
    prefill="sparse",
    query_aware=True,
    seed=7,
    needs=(("basis", "00000000000000000000"),),
)


@pytest.mark.parametrize(("cell", "key"), [(PLAIN, "fa80f0c911325ab1a75c"), (LOKI, "d39dc95e10e7818835ad")])
def test_golden_keys(cell, key):
    """Every result that anybody has would be computed again: raise FORMAT if that is meant."""
    assert cell.key == key


def test_key_survives_json():
    """A cell that went through a job's file would be another one."""
    assert Cell.from_json(LOKI.to_json()).key == LOKI.key


def test_where_a_model_lies_is_not_in_the_key():
    """Moving a model would compute everything again."""
    assert replace(PLAIN, model=replace(MODEL, source="/elsewhere")).key == PLAIN.key


def test_where_data_lie_is_not_in_the_key():
    """A training on several texts would be another one on each machine, and its model trained again."""
    here, there = (
        replace(
            PLAIN, task=Spec("train", 1, {"corpus": (f"{folder}/a.txt", f"{folder}/b.txt"), "heldout": f"{folder}/c"})
        )
        for folder in ("/here", "/there")
    )
    assert here.key == there.key
    other = replace(PLAIN, task=Spec("train", 1, {"corpus": ("/here/a.txt", "/here/x.txt"), "heldout": "/here/c"}))
    assert other.key != here.key


@pytest.mark.parametrize(
    "change",
    [
        {"model": replace(MODEL, digest="x")},
        {"method": Spec("full", 2)},
        {"task": replace(PLAIN.task, args={"window": 512, "corpus": "prose"})},
        {"task": replace(PLAIN.task, digest="x")},
        {"dtype": "float16"},
        {"device": "cuda"},
        {"ranks": 2},
        {"prefill": "sparse"},
        {"query_aware": True},
        {"seed": 1},
        {"needs": (("basis", "x"),)},
    ],
    ids=str,
)
def test_what_changes_a_result_changes_the_key(change):
    """An old result would answer a new question."""
    assert replace(PLAIN, **change).key != PLAIN.key
