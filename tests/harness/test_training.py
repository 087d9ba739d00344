"""Training: that it learns, that it can be killed and shared out, and that what it yields is an ordinary checkpoint."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

sys.path[:0] = [str(Path(__file__).parent)]

from training_cells import ARGS, assert_close, losses, start, train, weights, write_sweep  # noqa: E402

from lacuna.harness.training.optimiser import Muon  # noqa: E402
from lacuna.harness.training.state import State  # noqa: E402
from lacuna.jobs.sweep import SweepError, read  # noqa: E402
from lacuna.models.card import export  # noqa: E402
from lacuna.models.load import load_model, read_card, write_folder  # noqa: E402
from lacuna.results.cell import Spec  # noqa: E402
from lacuna.results.plugins import ROOT  # noqa: E402
from lacuna.results.store import Store  # noqa: E402

OVERFIT = {"tokens": 120 * 512, "lengths": [32], "shares": [1.0], "planted": [0.0], "part_tokens": 512, "decay": 0.2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One small run that several tests look at."""
    folder = tmp_path_factory.mktemp("trained")
    return (*train(folder, "store"), folder)


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_learns_a_text_by_heart(tmp_path, optimiser):
    """A trainer that cannot overfit one sentence has a gradient, a shift or a rate that is wrong."""
    (tmp_path / "one.txt").write_text(
        "the quick brown fox jumps over the lazy dog and runs away. " * 40, encoding="utf-8"
    )
    record, _ = train(
        tmp_path, "s", model={"new": "small270.json"}, corpus=["one.txt"], optimiser=optimiser, rate=0.01, **OVERFIT
    )
    assert record.status == "ok", record.trace
    assert record.samples[0]["loss"] > 5
    assert record.samples[-1]["loss"] < 0.1


def test_record_says_what_happened(trained):
    """Without curve, speed and evaluation nobody can tell whether a run went well."""
    record, store, _ = trained
    assert record.status == "ok", record.trace
    assert record.metrics["steps"] == 12
    assert {"heldout_perplexity", "tok_s_32", "tok_s_64", "loss"} <= record.metrics.keys()
    assert [p["step"] for p in record.samples] == list(range(1, 13))
    assert [p["length"] for p in record.samples] == [32] * 6 + [64] * 6
    card = read_card(store.artifact(record.key))
    assert card["task"]["args"]["tokens"] == 6144
    assert card["curve"] == list(record.samples)


def test_held_out_text_is_scored_at_each_length(trained, tmp_path):
    """A baseline at two lengths would be trained twice, or the second one never seen."""
    record, _ = train(tmp_path, "s", heldout_lengths=[64, 32])
    both = [record.metrics[f"heldout_perplexity_{length}"] for length in (64, 32)]
    assert both[0] == record.metrics["heldout_perplexity"] == trained[0].metrics["heldout_perplexity"]
    assert both[1] != both[0]
    assert record.metrics["heldout_tokens"] == 2 * (64 + 32)


@torch.no_grad()
def test_is_a_checkpoint_of_transformers(trained, tmp_path):
    """A model that only this trainer can read could not be evaluated by anything else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record, store, _ = trained
    export(store.artifact(record.key), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("The quick brown fox", return_tensors="pt")["input_ids"]
    ours, same = load_model(Spec("m", source=str(store.artifact(record.key))), "float32", "cpu")
    assert same("The quick brown fox")["input_ids"] == ids[0].tolist()
    assert torch.equal(ours(ids).logits, model(ids).logits)
    assert model.config.tie_word_embeddings
    said = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert said.startswith("---\nlibrary_name: transformers\n---\n# out\n")
    assert f"cell `{record.key}`" in said
    again = yaml.safe_load(said.split("```yaml")[1].split("```")[0])
    assert again["task"]["train"] == record.cell.to_json()["task"]["args"]
    assert max(p.stat().st_size for p in (tmp_path / "out").iterdir()) < 16 * 2**20
    with pytest.raises(ValueError, match="not empty"):
        write_folder(store.artifact(record.key), tmp_path / "out")


def test_killed_and_resumed_is_the_same_run(trained, tmp_path):
    """A run that a cluster kills would end with another model, and its curve would have a step."""
    record, store, _ = trained
    sweep = write_sweep(tmp_path)
    (cell,) = read(sweep, Store(tmp_path / "killed")).cells
    assert cell.key == record.key
    state = Store(tmp_path / "killed").work(cell.key) / "state.safetensors"
    process = start(sweep, tmp_path / "killed")
    end = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists(), "it was killed too early, or too late"
    assert not Store(tmp_path / "killed").artifact(cell.key).exists(), "it ended before it was killed"
    assert_close((record, store), train(tmp_path, "killed"), atol=0, rtol=0)


def test_another_runs_state_is_left_alone(trained, tmp_path):
    """Half of one run and half of another would pass for the second."""
    record, _store, _ = trained
    (cell,) = read(write_sweep(tmp_path, seed=1), Store(tmp_path / "s")).cells
    place = Store(tmp_path / "s").work(cell.key)
    State(record.key, 3, {"model.x": torch.ones(1)}, []).write(place)
    before = (place / "state.safetensors").read_bytes()
    again, _ = train(tmp_path, "s", seed=1)
    assert again.status == "error"
    assert "is of another run" in again.reason
    assert (place / "state.safetensors").read_bytes() == before


def test_muon_is_that_of_torch():
    """Matrices stacked for speed must move as they would one by one."""
    torch.manual_seed(0)
    shapes = [(8, 4), (4, 8), (8, 4), (6, 6)]
    ours = {str(i): torch.nn.Parameter(torch.randn(s)) for i, s in enumerate(shapes)}
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours.values()]
    mine = Muon(ours, 0.02, 0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    for _ in range(5):
        for p, q in zip(ours.values(), theirs, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        mine.step(1.0)
        reference.step()
    for p, q in zip(ours.values(), theirs, strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=2e-2)  # the iteration is in bfloat16


def test_goes_on_with_a_checkpoint(trained, tmp_path):
    """Fine-tuning would begin with random weights, or change the model that other cells measure."""
    record, store, folder = trained
    write_folder(store.artifact(record.key), tmp_path / "base")
    changes = {"rate": 0.0001, "matrix_rate": 0.0001, "tokens": 512, "lengths": [64], "shares": [1.0], "planted": [0.0]}
    tuned, elsewhere = train(tmp_path, "s", model={"path": "base"}, **changes)
    assert tuned.status == "ok", tuned.trace
    assert tuned.samples[0]["loss"] == pytest.approx(record.samples[-1]["loss"], abs=0.4)
    before, after = weights(store, record), weights(elsewhere, tuned)
    assert all(0 < (before[n] - after[n]).abs().max() < 1e-2 for n in before)
    assert folder.exists()


def test_landmarks_are_taught_to_a_checkpoint(trained, tmp_path):
    """New rows that are random, or a vocabulary that shifts, would wreck a model before it is tuned."""
    record, store, _ = trained
    write_folder(store.artifact(record.key), tmp_path / "base")
    changes = {"tokens": 512, "lengths": [64], "shares": [1.0], "planted": [0.0], "attention": "landmark", "block": 8}
    tuned, elsewhere = train(tmp_path, "s", model={"path": "base"}, rate=0.0001, matrix_rate=0.0001, **changes)
    assert tuned.status == "ok", tuned.trace
    old, new = (w["model.embed_tokens.weight"] for w in (weights(store, record), weights(elsewhere, tuned)))
    assert new.shape[0] == 304
    torch.testing.assert_close(new[:300], old, atol=3e-4, rtol=0)
    torch.testing.assert_close(new[300:], old.mean(0).expand(4, -1), atol=3e-4, rtol=0)
    model, tokenizer = load_model(Spec("m", source=str(elsewhere.artifact(tuned.key))), "float32", "cpu")
    assert model.config.lacuna_landmark["token"] == tokenizer.convert_tokens_to_ids("<|landmark|>") == 300
    assert tuned.samples[0]["loss"] == pytest.approx(record.samples[-1]["loss"], abs=0.6)


@torch.no_grad()
def test_recurrence_is_attention_over_two_windows(tmp_path):
    """A cache that is stale, shifted or cut would make the Transformer-XL baseline weaker than it is."""
    from lacuna.harness.training.batches import Fed
    from lacuna.harness.training.kinds import Recurrent
    from lacuna.models.load import attending

    record, store = train(tmp_path, "s", attention="recurrent", window=16)
    assert record.status == "ok", record.trace
    model, _ = load_model(Spec("m", source=str(store.artifact(record.key))), "float32", "cpu")
    ids = torch.randint(0, 300, (2, 48), generator=torch.Generator().manual_seed(0))
    kind, logits = Recurrent(16), []

    def loss(ids, targets, weights, **more):
        logits.append(model(input_ids=ids, use_cache=False, **more).logits)
        return logits[-1]

    with attending(model, kind.attend):
        list(kind.sums(loss, Fed(ids, ids, ids.float(), None, None, None, None)))
    window = torch.arange(48) // 16
    seen = (window[:, None] - window <= 1) & (torch.arange(48)[:, None] >= torch.arange(48))
    mask = torch.where(seen, 0.0, -torch.inf)[None, None]
    torch.testing.assert_close(torch.cat(logits, 1), model(ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"new": "none.json"}, "no shape 'none.json'"),
        ({"new": "pockett"}, "did you mean 'pocket'"),
        ({"new": "small300.json", "path": "x"}, "takes its shape alone"),
    ],
)
def test_wrong_shapes_are_told_before_anything_runs(tmp_path, model, words):
    """A sweep would wait in a queue to fail."""
    with pytest.raises(SweepError, match=words):
        read(write_sweep(tmp_path, model=model), Store(tmp_path / "s"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": "landmark", "block": 7}, "every 7 tokens does not divide a length of 32: take 35"),
        ({"jump": 3}, "are of `attention: landmark`"),
        ({"weights": "sharded"}, "Muon needs whole matrices"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(tmp_path, changes, words):
    """A sweep would wait in a queue to fail."""
    with pytest.raises(SweepError, match=words):
        read(write_sweep(tmp_path, **changes), Store(tmp_path / "s"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": "sharded", "optimiser": "adamw"}, "needs several ranks"),
        ({"mix": [0.5, 0.5]}, "expected the shares of facts, variables"),
        ({"planted": [1.0, 1.0]}, "use longer rows, or another `mix`"),
        ({"heldout_lengths": [64, 10**6]}, "held-out windows need one"),
        ({"heldout_lengths": [60], "attention": "landmark", "block": 8}, "does not divide a length of 60: take 64"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(tmp_path, changes, words):
    """A setting that is ignored, or a traceback, leaves people guessing."""
    record, store = train(tmp_path, "s", **changes)
    assert record.status == "error"
    assert words in record.reason
    assert not store.artifact(record.key).exists()


def test_a_sweep_measures_what_it_trains(tmp_path):
    """A trained model would have to be carried by hand from one sweep to the next."""
    from lacuna.harness.ranks import Ranks
    from lacuna.harness.run import run_cells
    from lacuna.jobs.plan import plan

    write_sweep(tmp_path)
    made = {"model": {"new": "small300.json"}, "train": {**ARGS, "attention": "landmark", "block": 8}, "seed": 1}
    sweep = {"model": {"trained": made}, "method": {"landmark": {"rows": 24, "chunk": 16}},
             "task": [{"perplexity": {"window": 64, "windows": 1}}, {"passkey": {"length": 400, "samples": 1}}]}  # fmt: skip
    (tmp_path / "both.yaml").write_text(json.dumps(sweep), encoding="utf-8")
    store = Store(tmp_path / "s")
    found = read(tmp_path / "both.yaml", store)
    (training,) = found.needed
    assert training.seed == 1
    assert all(dict(cell.needs) == {"model": training.key} for cell in found.cells)
    waves = plan(found, store).waves
    run_cells([c for wave in waves for group in wave for c in group.cells], store, Ranks(), lambda _: None)
    assert [(r.status, r.reason) for r in store.records()] == [("ok", "")] * 3


def test_shipped_sweeps_are_read(tmp_path):
    """A sweep that is ready for hours of a cluster would fail on its first line there."""
    for name in ("train_books_00.tar.xz", "train_books_01.tar.xz"):
        (tmp_path / name).write_bytes(b"")
    for name in ("val", "pg19_train", "pg19_validation"):
        (tmp_path / f"{name}.jsonl.gz").write_bytes((ROOT / "harness" / "data" / "prose.jsonl.gz").read_bytes())
    for name in (
        "train-pocket",
        "train-pocket-landmark",
        "train-compare",
        "train-ranks",
        "train-speed",
        "landmark",
        "landmark-paper",
    ):
        assert read(ROOT / "jobs" / "sweeps" / f"{name}.yaml", Store(tmp_path / "s"), data=tmp_path).cells


def test_a_second_cell_of_the_group_begins_anew(tmp_path):
    """Cells share a loaded model: the second would go on from the first one's weights."""
    from training_cells import write_sweep

    from lacuna.harness.ranks import Ranks
    from lacuna.harness.run import run_cells

    store = Store(tmp_path / "s")
    cells = [read(write_sweep(tmp_path, f"c{n}", save_steps=n), store).cells[0] for n in (1, 2)]
    run_cells(cells, store, Ranks(), lambda _: None)
    first, second = (store.get(cell.key) for cell in cells)
    assert losses(first) == losses(second)
