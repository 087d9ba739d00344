"""Times of a run of the bench as the documents show them."""

import csv

import pandas as pd
import pytest

from lacuna.analysis import op_table
from lacuna.analysis.bench import read
from lacuna.analysis.splice import spliced

HEAD = ["op", "case", "baseline", "status", "device", "median_ms", "bytes", "ceiling_gb_s", "percent_of_ceiling"]
CASE, LONG = "b2_h8_g4_s1024", "b2_h8_g4_s4096"
ROWS = [
    ("gather_decode", CASE, "", "ok", 0.05, 100, 50.0),
    ("gather_decode", LONG, "", "oom", "", 100, ""),
    ("taylor_features", "b16_g8_n1_w16", "", "ok", 0.01, 2e6, 0.5),
    ("dense_decode", CASE, "", "ok", 0.5, 1000, 97.6),
    ("dense_decode", CASE, "sdpa_cudnn", "ok", 0.4, 1000, 104.0),
    ("loki_pipeline", CASE, "", "ok", 0.25, 400, 80.2),
    ("dense_decode", LONG, "", "ok", 1.5, 4000, 98.0),
]


@pytest.fixture
def path(tmp_path):
    """A table as `lacuna bench -o` writes it, with round numbers."""
    with (tmp_path / "ops.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(HEAD)
        rows.writerows((*row[:4], "GPU", *row[4:6], 4000, row[6]) for row in ROWS)
    return tmp_path / "ops.csv"


def test_each_time_stands_under_its_shape(path):
    """A time would be read as that of another shape or baseline, or a failure as a time of nothing."""
    assert op_table.to_markdown(read(path)).splitlines() == [
        "| operation | 2, 8, 4, 1024 | 2, 8, 4, 4096 |",
        "| --- | --- | --- |",
        "| `dense_decode` | 0.5000, 98% | 1.500, 98% |",
        "| `sdpa_cudnn` | 0.4000, 104% | – |",
        "| `gather_decode` | 0.0500, 50% | oom |",
        "| `loki_pipeline` | 0.2500, 80%; 1.60 of 2.50 | – |",
        "",
        "| operation | shape | MB | ms | % of copy |",
        "| --- | --- | --- | --- | --- |",
        "| `taylor_features` | b16_g8_n1_w16 | 2.00 | 0.0100 | 0.5 |",
    ]


def test_a_share_in_a_chain_stands_in_brackets(path):
    """An operation that is mostly launch would look as if it left its bytes' speed unused in a step, too."""
    told = read(path).assign(
        percent_in_chain=lambda rows: (
            rows["percent_of_ceiling"].where(rows["op"].str.startswith(("gather", "taylor"))) + 7
        )
    )
    lines = op_table.to_markdown(told).splitlines()
    assert "| `gather_decode` | 0.0500, 50% (57%) | oom |" in lines
    assert "| `taylor_features` | b16_g8_n1_w16 | 2.00 | 0.0100 | 0.5 (7.5) |" in lines
    assert "| `sdpa_cudnn` | 0.4000, 104% | – |" in lines


def test_a_copy_of_as_many_bytes_stands_behind_a_slash(path):
    """A launch that no kernel can spare would be read as bytes' speed that this one leaves unused."""
    told = read(path).assign(percent_in_chain=57.0, percent_of_copy=[81.4, None, 62.25, 100, 104, 90, 99])
    lines = op_table.to_markdown(told).splitlines()
    assert "| `gather_decode` | 0.0500, 50% (57%) / 81% | oom |" in lines
    assert "| `loki_pipeline` | 0.2500, 80% (57%) / 90%; 1.60 of 2.50 | – |" in lines
    assert "| `taylor_features` | b16_g8_n1_w16 | 2.00 | 0.0100 | 0.5 (57.0) / 62.2 |" in lines


def test_a_document_names_the_file_from_its_own_folder(path):
    """A table of docs/ would be looked for beside the README."""
    block = "<!-- lacuna ops ops.csv -->\n<!-- end -->\n"
    assert "| `sdpa_cudnn` | 0.4000, 104% |" in spliced(block, path.parent)


def test_times_without_dense_attention_make_no_table(path):
    """A table would have no columns, and the document nothing where its numbers were."""
    only = read(path).query("op != 'dense_decode'")
    with pytest.raises(ValueError, match="dense_decode"):
        op_table.to_markdown(only)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"dtype": "float16"}, "one dtype in a table, found bfloat16, float16"),
        ({"run": "other"}, "one run in a table, found ops, other"),
        ({}, "dense_decode at b2_h8_g4_s1024 was timed 2 times, a table has one place"),
    ],
)
def test_times_that_one_place_cannot_hold_are_refused(path, more, told):
    """The last of two runs or dtypes would stand in the document, and its gain be over dense attention of the other."""
    once = read(path).assign(dtype="bfloat16")
    again = once[once["op"].eq("dense_decode")].assign(**more)
    with pytest.raises(ValueError, match=told):
        op_table.to_markdown(pd.concat([once, again], ignore_index=True))


def test_two_lines_that_would_look_alike_are_refused(path):
    """Of one operation timed in two dtypes at a shape of its own, two lines would differ in nothing but the time."""
    once = read(path)
    again = once[once["op"].eq("taylor_features")].assign(dtype="float16", median_ms=0.02)
    with pytest.raises(ValueError, match=r"taylor_features at b16_g8_n1_w16 was timed 2 times \(dtype , float16\)"):
        op_table.to_markdown(pd.concat([once, again], ignore_index=True))
