"""The sweeps of the landmark paper's tables run to their end, with a tiny model and little text in place of theirs."""

import io
import json
import tarfile

import pytest
import yaml

from lacuna.harness.ranks import Ranks
from lacuna.harness.run import run_cells
from lacuna.harness.training.corpus import documents
from lacuna.jobs.plan import plan
from lacuna.jobs.sweep import read
from lacuna.results.plugins import ROOT
from lacuna.results.store import Store

SHIPPED = ROOT / "harness" / "data" / "prose.jsonl.gz"


def smaller(training):
    """The same kind of training, six steps of it."""
    step = 4000 if training["lengths"] == [500] else 4096
    training |= {"tokens": 6 * step, "step_tokens": step, "part_tokens": step // 2, "heldout_windows": 1}


def cut(sweep):
    """Each training and measurement as short as it can be."""
    for block in sweep["blocks"]:
        shipped = isinstance(block["model"], str)
        trained = None if shipped else block["model"].get("trained")
        (trained or block)["model"] = block["model"] if shipped else {"new": "tiny"}
        if trained:
            trained.pop("dtype", None)  # an anchor is one mapping in several blocks
            smaller(trained["train"])
        for task in block["task"] if isinstance(block["task"], list) else [block["task"]]:
            for name, arguments in task.items():
                if name == "train":
                    smaller(arguments)
                else:
                    few = {"windows": 1} if name == "perplexity" else {"length": [512, 2048], "samples": 1}
                    arguments.update(few)
    return sweep | {"device": "cpu", "dtype": "float32"}


@pytest.mark.slow
def test_the_tables_run_to_their_end(tmp_path):
    """A budget, a block or a cut-off that does not fit its model would be found after hours of a GPU."""
    (tmp_path / "val.jsonl.gz").write_bytes(SHIPPED.read_bytes())
    with tarfile.open(tmp_path / "train_books_00.tar.xz", "w:xz") as archive:
        for number, text in enumerate(documents(["prose"])):
            content = text.encode()
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    sweep = yaml.safe_load((ROOT / "jobs" / "sweeps" / "landmark.yaml").read_text(encoding="utf-8"))
    (tmp_path / "small.yaml").write_text(json.dumps(cut(sweep)), encoding="utf-8")
    store = Store(tmp_path / "s")
    found = read(tmp_path / "small.yaml", store, data=tmp_path)
    for wave in plan(found, store).waves:
        run_cells([cell for group in wave for cell in group.cells], store, Ranks(), lambda _: None)
    records = list(store.records(found.keys()))
    assert {(r.status, r.reason) for r in records} == {("ok", "")}
    cuts = {
        r.cell.method.args["cutoff"]: r.ledger["decode"]["density"]
        for r in records
        if r.cell.method.name == "landmark" and r.cell.model.name == "tiny-landmark" and r.cell.method.args["cutoff"]
    }
    assert cuts[1.0] == min(cuts.values()) < 300 / 2048
