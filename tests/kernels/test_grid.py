"""Shapes that are asked for instead of the operations' own."""

import csv
from dataclasses import asdict

import pytest
import torch

from lacuna.kernels import bench as bench_module
from lacuna.kernels.bench import rows
from lacuna.kernels.grid import break_even_rows, decode_ops, grid_cases, write_csv
from lacuna.kernels.row import Row


def test_a_grid_is_a_product():
    """A shape would be left out of a grid, or be another one than its name says."""
    cases = grid_cases([1, 16], [64, 1024], [4, 8], "8x2")
    assert len({case.name for case in cases}) == 8
    case = next(case for case in cases if case.name == "b16_h8_g2_s1024_1of8")
    assert (case.batch, case.q_heads, case.kv_heads, case.rows) == (16, 8, 2, 1024)
    assert (case.low_dims, case.kept, case.visible, case.purpose) == (16, 128, "full", "time")


@pytest.mark.parametrize(("heads", "parts", "told"), [("8", [4], "QUERYxKV"), ("8x3", [4], "divisible"), ("8x2", [999], "64")])  # fmt: skip
def test_impossible_grids_are_refused(heads, parts, told):
    """A typing error would end in a traceback after minutes of timing."""
    with pytest.raises(ValueError, match=told):
        grid_cases([1], [64], parts, heads)


def test_an_operation_of_another_kind_is_refused():
    """Its cases have another shape: it would fail somewhere inside."""
    assert "dense_decode" in decode_ops(["dense_decode", "landmark_attention"])
    with pytest.raises(ValueError, match="landmark_attention"):
        list(rows(["landmark_attention"], torch.device("cpu"), grid_cases([1], [64], [4])))


def test_a_case_that_does_not_fit_is_a_row(monkeypatch):
    """A grid to a million rows would end at the first shape that is too large, and say nothing of the others."""

    def too_much(op, case, *_):
        raise torch.OutOfMemoryError(f"Tried to allocate {case.rows} GiB")

    monkeypatch.setattr(bench_module, "bench", too_much)
    monkeypatch.setattr(bench_module, "copy_gb_s", lambda _: 1.0)
    found = list(rows(["gate"], torch.device("cpu"), grid_cases([1], [64, 128], [4])))
    assert [row["status"] for row in found] == ["oom", "oom"]
    assert found[1]["reason"] == "Tried to allocate 128 GiB"


def test_what_was_measured_outlives_what_fails(tmp_path):
    """A run that is cut off would leave nothing of minutes of a GPU."""

    def cut_off():
        yield {"op": "gate", "case": "a", "samples_ms": (1.0, 2.0)}
        raise TimeoutError

    with pytest.raises(TimeoutError):
        write_csv(cut_off(), tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["op"], row["samples_ms"]) == ("gate", "1.000000 2.000000")


def test_break_even_is_where_all_longer_rows_gain():
    """One lucky shape would be told as the length from which a method pays."""
    gains = {1024: 1.1, 4096: 0.9, 16384: 1.2, 65536: 2.0}
    told = [{"op": "loki_pipeline", "case": f"b1_h32_g8_s{s}_1of4", "speed_up": gain} for s, gain in gains.items()]
    told.append({"op": "loki_pipeline", "case": "b1_h32_g8_s1024_1of8", "speed_up": 0.5})
    told.append({"op": "dense_decode", "case": "b1_h32_g8_s1024_1of2", "speed_up": None})
    assert break_even_rows(told, "loki_pipeline") == {(1, 4): 16384, (1, 8): None}


def test_a_grid_says_in_its_rows_from_where_on_it_pays(tmp_path):
    """The table of a grid would have to be read by eye, or the break-even of one kind of keys be told of another."""
    gains = {("random", 1024): 0.9, ("random", 4096): 1.2, ("pocket", 1024): 0.8, ("pocket", 4096): 0.9}
    blank = asdict(Row("loki_pipeline", "")) | {"samples_ms": (1.0,)}
    lines = [
        blank
        | {
            "case": f"b1_h32_g8_s{rows}_1of4{'' if keys == 'random' else '_keys-' + keys}",
            "keys": keys,
            "speed_up": gain,
        }
        for (keys, rows), gain in gains.items()
    ]
    lines.append(blank | {"op": "dense_decode", "case": "b1_h32_g8_s1024_1of4"})
    told = write_csv(iter(lines), tmp_path / "grid.csv")
    assert [row["break_even_rows"] for row in told] == [4096, 4096, None, None, None]
    with (tmp_path / "grid.csv").open() as file:
        assert [row["break_even_rows"] for row in csv.DictReader(file)] == ["4096", "4096", "", "", ""]
    assert list(tmp_path.iterdir()) == [tmp_path / "grid.csv"]
