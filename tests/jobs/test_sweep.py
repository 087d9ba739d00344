"""A sweep file becomes the cells that it says, and nothing else."""

import gzip
from pathlib import Path

import pytest

from lacuna.jobs.sweep import SweepError, read
from lacuna.results.store import Store

DEMO = """
name: demo
model: pocket
method:
  - full
  - topk: {k: [0.25, 0.0625]}
  - loki: {k: 0.25, d: 0.25, basis: {corpus: calibration}}
task:
  - perplexity: {window: 1024}
  - needle: {length: [512, 1024]}
ranks: 2
"""
SMALL = "model: pocket\nmethod: full\ntask: needle\n"


def sweep(text, *overrides):
    path = Path("sweep.yaml")
    path.write_text(text, encoding="utf-8")
    return read(path, Path("store"), overrides)


def told(text, *overrides):
    with pytest.raises(SweepError) as caught:
        sweep(text, *overrides)
    return [error.removeprefix("sweep.yaml:") for error in caught.value.errors]


def test_product_in_order(root):
    """A cell would be missing, doubled or out of the file's order."""
    found = sweep(DEMO)
    assert found.name == "demo"
    said = [(c.method.name, c.method.args.get("k"), c.task.name, c.task.args.get("length")) for c in found.cells]
    tasks = [[("perplexity", None)], [("needle", 512), ("needle", 1024)]]
    methods = [[("full", None)], [("topk", 0.25), ("topk", 0.0625)], [("loki", 0.25)]]
    assert said == [(*m, *t) for one in methods for other in tasks for m in one for t in other]
    assert {c.ranks for c in found.cells} == {2}


def test_spelled_defaults_have_the_same_key(root):
    """Writing a default down would compute everything again."""
    short, long = (
        sweep(f"model: pocket\nmethod: {m}\ntask: {t}\n{more}").cells
        for m, t, more in (
            ("{topk: }", "needle", ""),
            ("{topk: {sharp: 1, k: 0.25}}", "{needle: {cases: 8, length: 512}}", "dtype: float32\nseed: 0\n"),
        )
    )
    assert [c.key for c in short] == [c.key for c in long]


def test_duplicates_are_one_cell(root):
    """A cell that is written twice would run twice."""
    assert len(sweep(SMALL + "seed: [0, 0]\n").cells) == 1


def test_count_and_share_differ(root):
    """k=1 (one row) and k=1.0 (all rows) would be taken for the same."""
    found = sweep("model: pocket\nmethod: {topk: {k: [1, 1.0]}}\ntask: needle\n").cells
    assert [type(c.method.args["k"]) for c in found] == [int, float]
    assert len({c.key for c in found}) == 2


def test_list_of_lists_is_the_axis_where_a_list_is_a_value(root):
    """A list-valued argument could not be given, or not be swept over."""
    one = "model: pocket\nmethod: {loki: {k: 1, layers: %s}}\ntask: needle\n"
    assert [c.method.args["layers"] for c in sweep(one % "[1, 2]").cells] == [[1, 2]]
    assert [c.method.args["layers"] for c in sweep(one % "[[1, 2], [3]]").cells] == [[1, 2], [3]]


def test_zip_within_a_method(root):
    """Zipped axes would still be multiplied."""
    text = (
        "model: pocket\nmethod: {loki: {k: [1, 2], d: [3, 4]}}\ntask: needle\nzip: [[method.loki.k, method.loki.d]]\n"
    )
    assert [(c.method.args["k"], c.method.args["d"]) for c in sweep(text).cells] == [(1, 3), (2, 4)]


def test_zip_across_axes(root):
    """Methods and settings could not advance together."""
    text = "model: pocket\nmethod: [full, topk]\ntask: {needle: {length: [1, 2]}}\nseed: [7, 8]\nzip: [[method, seed, task.needle.length]]\n"
    found = [(c.method.name, c.seed, c.task.args["length"]) for c in sweep(text).cells]
    assert found == [("full", 7, 1), ("topk", 8, 2)]


def test_exclude_drops_what_matches_all(root):
    """An exclude would drop too much, or too little."""
    found = sweep(DEMO + "exclude: [{method: topk, task: {needle: {length: [1024, 4096]}}}, {method: [full, loki]}]\n")
    assert [(c.method.args["k"], c.task.name) for c in found.cells] == [
        (0.25, "perplexity"),
        (0.0625, "perplexity"),
        (0.25, "needle"),
        (0.0625, "needle"),
    ]


def test_blocks_stand_on_the_defaults(root):
    """A block would lose the file's defaults, or leak into the next block."""
    found = sweep(SMALL + "blocks: [{method: topk, seed: 3}, {task: perplexity}]\n").cells
    assert [(c.method.name, c.task.name, c.seed) for c in found] == [("topk", "needle", 3), ("full", "perplexity", 0)]


def test_overrides_win_over_the_file(root):
    """`--set ranks=1` would not bring a two-rank sweep onto a laptop."""
    text = DEMO + "exclude: [{ranks: 2, method: full}]\nblocks: [{ranks: [2, 4], seed: [0, 1], zip: [[ranks, seed]]}]\n"
    assert {(c.ranks, c.seed) for c in sweep(text, "ranks=1").cells} == {(1, 0), (1, 1)}


def test_arguments_are_overridden_too(root):
    """A published sweep could not be tried on a few documents without a copy of its file."""
    found = sweep(
        "model: pocket\nmethod: [full, {topk: {k: [0.5, 0.25]}}]\n"
        "task: [perplexity, {needle: {length: [256, 512], cases: 2}}]\nseed: [0, 1]\n"
        "exclude: [{method: {topk: {k: 0.5}}, task: perplexity}]\nzip: [[task.needle.length, seed]]\n",
        "task.needle.length=128",
        "method.topk.k=0.125",
        "task.perplexity.window=64",
        "seed=0",
    ).cells
    assert {
        (c.method.name, c.method.args.get("k"), c.task.args.get("length"), c.task.args.get("cases")) for c in found
    } == {
        ("full", None, None, None),
        ("full", None, 128, 2),
        ("topk", 0.125, None, None),
        ("topk", 0.125, 128, 2),
    }
    assert {c.task.args["window"] for c in found if c.task.name == "perplexity"} == {64}


def test_needed_cells_are_made_and_pinned(root):
    """Loki would run without its calibration, or with another model's, dtype's or corpus'."""
    found = sweep(DEMO + "dtype: bfloat16\n")
    (needed,) = found.needed
    assert str(needed) == "pocket x full x pca(corpus=calibration, rotary=post)"
    assert (needed.dtype, needed.ranks, needed.model) == ("bfloat16", 2, found.cells[0].model)
    assert {c.needs for c in found.cells if c.method.name == "loki"} == {(("basis", needed.key),)}
    assert {c.needs for c in found.cells if c.method.name != "loki"} == {()}


def test_arguments_of_what_is_needed_are_axes(root):
    """Two calibrations could not be compared in one sweep."""
    found = sweep("model: pocket\nmethod: {loki: {k: 1, basis: {rotary: [pre, post]}}}\ntask: needle\n")
    assert [c.task.args["rotary"] for c in found.needed] == ["pre", "post"]
    assert len({c.key for c in found.cells}) == 2


def test_digests_follow_the_content(root):
    """A changed corpus or changed weights would be answered with old results; a moved model would be run again."""
    text = "model: pocket\nmethod: full\ntask: perplexity\n"
    before = sweep(text).cells[0]
    (root / "models/zoo/pocket").rename(root / "models/zoo/moved")
    (root / "models/zoo/pocket.yaml").write_text("path: moved\n", encoding="utf-8")
    assert sweep(text).cells[0].key == before.key
    (root / "models/zoo/moved/model.safetensors").write_text("other", encoding="utf-8")
    assert sweep(text).cells[0].model.digest != before.model.digest
    (root / "harness/data/prose.jsonl.gz").write_bytes(gzip.compress(b'{"text": "other"}\n'))
    assert sweep(text).cells[0].task.digest != before.task.digest


def test_data_by_path(root):
    """A text of one's own could not be measured."""
    Path("mine.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    cell = sweep("model: pocket\nmethod: full\ntask: {perplexity: {corpus: mine.jsonl.gz}}\n").cells[0]
    assert cell.task.args["corpus"] == str(Path("mine.jsonl.gz").resolve())


def test_models_by_path_and_by_commit(root):
    """A model outside the zoo could not be measured, or a repo could move under its results."""
    commit = "0123456789abcdef" * 2 + "01234567"
    text = (
        f"model: [{{path: {root}/models/zoo/pocket}}, {{repo: a/b, revision: {commit}}}]\nmethod: full\ntask: needle\n"
    )
    folder, repo = (c.model for c in sweep(text).cells)
    assert (folder.name, folder.source) == ("pocket", str((root / "models/zoo/pocket").resolve()))
    assert (repo.name, repo.digest, repo.source, dict(repo.args)) == ("a/b", commit, f"a/b@{commit}", {})


def test_merged_mappings(root):
    """YAML's << would be taken for an argument."""
    text = "model: pocket\nmethod:\n- topk: &t {k: 3, sharp: 2}\n- topk: {<<: *t, k: 4}\ntask: needle\n"
    assert [(c.method.args["k"], c.method.args["sharp"]) for c in sweep(text).cells] == [(3, 2.0), (4, 2.0)]


def test_reading_begins_a_store_that_is_one(root):
    """The memory of digests alone would make the folder look like somebody else's."""
    sweep(SMALL)
    Store("store")
    assert (Path("store") / "digests.json").exists()


def test_store_that_cannot_be_written(root):
    """A plan could not be made with a store on a read-only file system."""
    Path("file").write_text("")
    Path("sweep.yaml").write_text(SMALL)
    assert len(read(Path("sweep.yaml"), Path("/proc/nowhere/store")).cells) == 1


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("", ["1: model is missing, expected a name or {name: {argument: value}}",
              "1: method is missing, expected a name or {name: {argument: value}}",
              "1: task is missing, expected a name or {name: {argument: value}}"]),
        ("- 1\n", ["1: the sweep is [1], expected a mapping", *(f"1: {p} is missing, expected a name or {{name: {{argument: value}}}}" for p in ("model", "method", "task"))]),
        (SMALL + "metod: full\n", ["4: unknown key 'metod': did you mean 'method'?"]),
        (SMALL + "seed: 1\nseed: 2\n", ['5: the key "seed" is there twice, first in line 4']),
        (SMALL + "dtype: [float32, fp16]\n", ['4: dtype is "fp16", expected one of float32, bfloat16, float16']),
        (SMALL + "ranks: 0\nquery_aware: 1\n", ["4: ranks is 0, expected a number of at least 1", "5: query_aware is 1, expected true or false"]),
        (SMALL + "seed: []\n", ["4: seed is an empty list, which gives no cells"]),
        (SMALL + "zip: [[seed, ranks]]\nseed: [1, 2]\nranks: [1, 2, 3]\n", ["4: zipped axes must be equally long: seed has 2, ranks has 3"]),
        (SMALL + "zip: [[sed, dtype]]\nseed: [1, 2]\n", ["4: zip names an unknown axis 'sed': did you mean 'seed'?", "4: zip names dtype, which is a single value, expected a list"]),
        (SMALL + "exclude: [{method: topk}]\n", ["4: this exclude matches no cell; take it out or mend it"]),
        (SMALL + "exclude: [{task: {needle: {lenght: 1}}, methd: full}]\n", ["4: needle has no argument 'lenght': did you mean 'length'?", "4: exclude has an unknown key 'methd': did you mean 'method'?"]),
        (SMALL + "exclude: [{method: full}]\n", ["1: this sweep has no cells: everything is excluded"]),
        ("model: poket\nmethod: [loky, {topk: {k: 1.5}}]\ntask:\n  needle:\n    lengths: 3\n",
         ["1: unknown model 'poket': did you mean 'pocket'?", "2: unknown method 'loky': did you mean 'loki'?",
          "2: method.topk.k is 1.5, expected a share of the context in (0, 1] (0.25) or a whole number of at least 1 (64)",
          "5: task.needle has no argument 'lengths': did you mean 'length'?"]),
        ("model: pocket\nmethod: {loki: {basis: {rotary: mid}}}\ntask: {perplexity: {corpus: pros}}\n",
         ["2: method.loki lacks its argument k, expected a whole number or a number", '2: method.loki.basis.rotary is "mid", expected one of pre, post',
          "3: task.perplexity.corpus: no data 'pros' in harness/data, nor a file of that path: did you mean 'prose'?"]),
        ("model: {repo: a/b}\nmethod: {topk: {sharp: 1e-3}}\ntask: needle\n",
         ["1: a model is {path: FOLDER}, {new: SHAPE} or {repo: ORG/NAME, revision: COMMIT}: without it a repo moves",
          '2: method.topk.sharp is "1e-3", expected a number (YAML takes 1e-3 for text: write 0.001)']),
        ("model: pocket\nmethod: {topk: {sharp: 1e-05}}\ntask: needle\n",
         ['2: method.topk.sharp is "1e-05", expected a number (YAML takes 1e-05 for text: write 1.0e-05)']),
        ("model: {repo: a/b, revision: main}\nmethod: full\ntask: needle\n", ["1: model.revision is 'main', expected a commit's 40 hexadecimal digits: a branch moves"]),
        ("model: {path: nowhere}\nmethod: {full: {}, topk: {}}\ntask: 2020-01-01\n", None),
        (SMALL + "seed: .nan\n", ['4: ".nan" is not a number that a result can depend on']),
        (SMALL + "name: a/b\n", ["4: name is \"a/b\", expected letters, digits, '.', '-' and '_'"]),
        (SMALL + "  x: [1\n", ["4: not YAML: mapping values are not allowed here"]),
        (SMALL + "blocks: {}\n", ["4: blocks is {}, expected a list of mappings"]),
        ("model: &a [*a]\n", ["1: not YAML: the alias in line 1 contains itself"]),
    ],
)  # fmt: skip
def test_messages(root, text, errors):
    """A wrong file would be told in other words, in another line, or one error at a time."""
    found = told(text)
    if errors is None:
        errors = [
            f"1: {Path.cwd()}/nowhere holds no model: expected a folder with config.json and *.safetensors",
            '2: method is {"full": {}, "topk": {}}, expected a name or {name: {argument: value}}',
            "3: !!timestamp is not a value of a sweep; put it in quotes if text is meant",
        ]
    assert sorted(found) == sorted(errors)


def test_wrong_overrides(root):
    """A misspelt --set would be passed over."""
    assert sorted(told(SMALL, "rank=1", "seed=x", "ranks=[1,2]", "dtype=2020-01-01")) == [
        '--set: dtype takes one value, found "2020-01-01"',
        '--set: ranks takes one value, found "[1,2]"',
        '--set: seed is "x", expected a whole number',
        "--set: unknown setting 'rank': did you mean 'ranks'?",
    ]  # fmt: skip
    wrong = (
        "task.needle.lenght=9",
        "task.kv.length=512",
        "task.needle.length=x",
        "needle.length=1",
        "method.full.x.y=1",
    )
    assert sorted(told(SMALL.replace("needle", "{needle: {length: 512}}"), *wrong)) == sorted([
        "--set: task.needle has no argument 'lenght': did you mean 'length'?",
        "--set: task.kv.length sets nothing: this sweep has no task 'kv'",
        '--set: task.needle.length is "x", expected a whole number',
        "--set: unknown setting 'needle.length': expected method.NAME.ARGUMENT or task.NAME.ARGUMENT",
        "--set: unknown setting 'method.full.x.y': expected method.NAME.ARGUMENT or task.NAME.ARGUMENT",
    ])  # fmt: skip


def test_missing_file(root):
    """A misspelt path would end in a traceback."""
    with pytest.raises(SweepError, match=r"none.yaml:1: cannot be read: No such file or directory"):
        read(Path("none.yaml"), Path("store"))


def test_too_many_cells(root, monkeypatch):
    """A slip in a range would fill the memory before anybody is told."""
    monkeypatch.setattr("lacuna.jobs.sweep.MOST_CELLS", 20)
    axis = "[1, 2, 3, 4, 5]"
    found = told(f"model: pocket\nmethod: {{topk: {{k: {axis}}}}}\ntask: {{needle: {{length: {axis}}}}}\n")
    assert found == ["1: more than 20 cells in a block; cut the sweep into several"]
