"""The calibration of thresholds: what is in its artifact, where it may come from, and how a step looks it up."""

import statistics
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest_models import make_model
from safetensors.torch import load, save_file

from lacuna.harness.lm import LM
from lacuna.harness.ranks import Ranks
from lacuna.harness.task import read_corpus
from lacuna.harness.tasks.pca import Pca
from lacuna.harness.tasks.thresholds import Notes, Thresholds
from lacuna.harness.world import World
from lacuna.models import attend, many, shard, threshold
from lacuna.models.bind import bind
from lacuna.models.call import Call
from lacuna.models.ledger import summary
from lacuna.models.methods.full import Full
from lacuna.models.methods.loki_theta import LokiTheta
from lacuna.models.methods.top_theta import TopTheta
from lacuna.models.rows import Clock
from lacuna.models.shard import Shard
from lacuna.results.cell import Cell, Spec

WINDOW, WINDOWS = 32, 9


EXACT = sum(max(1, n // 4) for n in range(1, 256)) / sum(range(1, 256))
ONE_ROW = 1 / 128  # a row at its own threshold may fall on either side by rounding


def letters(text, add_special_tokens):
    return {"input_ids": [ord(c) % 97 for c in text]}


def first(corpus, count):
    return torch.tensor(letters(Path(corpus).read_text(), add_special_tokens=False)["input_ids"][:count])


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    generator = torch.Generator().manual_seed(2)
    path.write_text("".join(chr(32 + int(i)) for i in torch.randint(0, 90, (WINDOW * WINDOWS,), generator=generator)))
    return str(path)


@contextmanager
def session(model, artifacts=None, method=None):
    lm = LM(model, letters, shard.split(model, 0, 1), World(Ranks(), "cpu"))
    with lm.under(method or Full(), Cell(Spec("m"), Spec("full"), Spec("thresholds")), artifacts or {}) as found:
        yield found


def calibrate(model, corpus, artifacts=None, **args):
    budget = {"rows": 4} if "keep" not in args else {"rows": None}
    given = {**budget, "window": WINDOW, "tokens": 256, "every": 5, "corpus": corpus, **args}
    with session(model, artifacts) as found:
        outcome = Thresholds(**given).run(found)
    return load(outcome.artifact)


def saved(folder, tensors):
    save_file(tensors, folder / "made.safetensors")
    return {"thresholds": folder / "made.safetensors"}


@dataclass(frozen=True)
class Spy(Full):
    """Full attention that keeps all scores."""

    scores: dict = field(default_factory=dict)

    def attend_dense(self, q_BHTD, memory, call, ledger):
        """Note, then attend."""
        self.scores[memory.site.layer] = attend.group_scores(q_BHTD, memory.keys.view, "none").double() * call.scale
        return super().attend_dense(q_BHTD, memory, call, ledger)


def seen(model, corpus):
    """Scores [B, H, T, S] of each layer under full attention."""
    text = first(corpus, 256).view(-1, WINDOW)
    spy = Spy()
    with bind(model, spy):
        model(text)
    return spy.scores


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_threshold_is_mean_plus_sigma_of_the_next_largest(placement, corpus, model):
    """The (k+1)-th largest score of a row keeps k under a strict comparison; one place off and every budget is wrong."""
    tensors = calibrate(model, corpus, tac="none", sigma=0.5, placement=placement)
    for layer, scores in seen(model, corpus).items():
        assert tensors[f"layer.{layer}.lengths"].tolist() == [5, 10, 15, 20, 25, 30, 32]
        for column, length in enumerate([5, 10, 15, 20, 25, 30, 32]):
            for h in range(4):
                rows = scores[:, h, length - 1, :length]
                rows = rows.softmax(-1) if placement == "post" else rows
                next_ = [sorted(row.tolist(), reverse=True)[4] for row in rows]
                want = statistics.fmean(next_) + 0.5 * statistics.pstdev(next_)
                assert float(tensors[f"layer.{layer}.{placement}"][h, column]) == pytest.approx(want, abs=1e-4)


def test_offline_mass_is_what_top_k_drops(corpus, model):
    """Offline compensation adds this sum to the denominator; it must be over the row's own largest score."""
    tensors = calibrate(model, corpus, tac="none")
    for layer, scores in seen(model, corpus).items():
        ordered = scores[:, :, 31].sort(-1, descending=True).values
        want = (ordered - ordered[..., :1]).exp()[..., 4:].sum(-1).mean(0)
        torch.testing.assert_close(tensors[f"layer.{layer}.mass"][:, -1].double(), want, atol=1e-5, rtol=1e-4)


def test_top_k_at_calibration_leaves_layer_0(corpus, model):
    """Layer 0 sees the same text either way; deeper layers must see what sparse layers before them let through."""
    dense, sparse = (calibrate(model, corpus, tac=tac) for tac in ("none", "topk"))
    torch.testing.assert_close(dense["layer.0.pre"], sparse["layer.0.pre"])
    assert (dense["layer.1.pre"] - sparse["layer.1.pre"]).abs().max() > 1e-4


@pytest.mark.parametrize("heads", ["query", "kv"])
def test_calibrated_thresholds_keep_k(heads, corpus, model, tmp_path):
    """On the one text that it was calibrated on, at every length, each set of rows holds k."""
    args = {"tokens": 256, "sigma": 0.0, "every": 1, "heads": heads, "window": 256, "keep": 0.25}
    tensors = calibrate(model, corpus, **args)
    method = TopTheta(keep=0.25, rows=None, heads=heads)
    with session(model, saved(tmp_path, tensors), method) as found:
        found.score(first(corpus, 256)[None], 1)
        told = summary([found.binding.ledger.sums()])["decode"]
    union = 1 if heads == "kv" else 1.5  # two query heads read what either of them keeps
    assert told["density"] == pytest.approx(EXACT * union, abs=ONE_ROW if heads == "kv" else 0.1)


def test_thresholds_on_low_rank_scores(corpus, model, tmp_path):
    """A calibration that itself needs a calibration: under the basis of `pca`, its thresholds keep k low-rank rows."""
    with session(model) as found:
        (tmp_path / "basis").write_bytes(Pca(corpus=corpus, tokens=256, window=16).run(found).artifact)
    basis = {"basis": tmp_path / "basis"}
    args = {"tokens": 256, "sigma": 0.0, "every": 1, "heads": "kv", "window": 256, "keep": 0.25, "d": 6, "basis": {}}
    files = basis | saved(tmp_path, calibrate(model, corpus, basis, **args))
    text = first(corpus, 256)[None]
    method = LokiTheta(keep=0.25, d=6, least=0.0, most=4.0, sdc="none", vmc="none")
    with session(model, files, method) as found:
        found.score(text, 1)
        told = summary([found.binding.ledger.sums()])["decode"]
    assert told["density"] == pytest.approx(EXACT, abs=ONE_ROW)


@pytest.mark.parametrize(
    "args",
    [{}, {"placement": "post"}, {"heads": "kv", "tac": "none"}, {"d": 0.5, "basis": {}}, {"keep": 0.25, "heads": "kv"}],
    ids=str,
)
def test_calibration_without_masks_finds_the_same(args, corpus, model, basis, monkeypatch):
    """Broken: thresholds that were calibrated on a GPU are those of other rows than those of a CPU."""
    files = {"basis": basis()["basis"]}
    want = calibrate(model, corpus, files, **args)
    taken = []
    monkeypatch.setattr(many, "fits", lambda q, memory, call: taken.append(many.plain(memory, call)) or taken[-1])
    found = calibrate(model, corpus, files, **args)
    assert taken
    assert all(taken)
    assert found.keys() == want.keys()
    for name, part in found.items():
        torch.testing.assert_close(part, want[name], atol=2e-5, rtol=1e-4)


def test_smoothing_over_lengths(corpus, model):
    """A Gaussian far wider than the text leaves one value for all lengths: nearly their mean."""
    rough, flat = calibrate(model, corpus), calibrate(model, corpus, smooth=1e4)
    mean = rough["layer.0.pre"].mean(-1, keepdim=True).expand(-1, 7)
    torch.testing.assert_close(flat["layer.0.pre"], mean, atol=1e-4, rtol=1e-4)


def test_thresholds_never_from_test_data(corpus):
    """HumanEval thresholds of the released code came from test prompts: what is measured on must be refused."""
    with pytest.raises(ValueError, match="would have seen the test"):
        Thresholds(corpus="prose")
    held_out = {d.text[i : i + 60] for d in read_corpus("prose") for i in range(0, len(d.text) - 60, 60)}
    calibration = "\n".join(d.text for d in read_corpus(Thresholds().corpus))
    assert not any(piece in calibration for piece in list(held_out)[::50])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"d": 4}, "both d and basis"),
        ({"d": 4, "basis": {}, "placement": "post"}, "placement: pre"),
        ({"rows": WINDOW}, "larger window"),
    ],
)
def test_calibrations_that_cannot_be(args, words, corpus, model):
    """A calibration that calibrates nothing must say so."""
    with pytest.raises(ValueError, match=words):
        calibrate(make_model(), corpus, **args)


def test_ranks_join_their_heads():
    """Each rank calibrates its own heads; a wrong join, or a head that only pads, would shift every threshold after."""
    task, generator = Thresholds(rows=4, window=WINDOW), torch.Generator().manual_seed(0)
    sums = [torch.rand(8, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    ranks = [Notes(2, 1, *(part[half] for part in sums)) for half in (slice(0, 4), slice(4, 8))]
    fake = SimpleNamespace(lm=SimpleNamespace(world=SimpleNamespace(gather=lambda _: ranks), shard=Shard(0, 2, 3)))
    watch = SimpleNamespace(notes={1: ranks[0]}, lengths={1: torch.arange(5, 10)})
    tables = task._tables(1, watch, fake)
    torch.testing.assert_close(tables["layer.1.mass"], sums[2][:6].float())
    assert tables["layer.1.pre"].shape == (6, 5)
    assert tables["layer.1.lengths"].tolist() == [5, 6, 7, 8, 9]


def test_tables_of_all_layers_are_looked_up_together_each_for_itself():
    """Layers whose tables differ in length or sets would get another layer's threshold, or each step a launch for each."""
    tables = [
        torch.arange(n * m, dtype=torch.float32).view(n, m) + 100 * i
        for i, (n, m) in enumerate(((2, 9), (4, 9), (2, 9), (2, 5)))
    ]
    memories = [SimpleNamespace(constants={"theta": table, "other": table}, joined={}) for table in tables]
    threshold.join(memories, ("theta", "mass"))
    assert memories[0].joined["theta"][0] is memories[2].joined["theta"][0]
    clock = Clock(6, torch.tensor([0, 4, 6]))
    for _ in range(3):
        clock.tick()
        call = Call(None, clock.lo_B, "decode", 1.0, clock.seen, 1, clock=clock)
        for memory in memories:
            sets = memory.constants["theta"].shape[0]
            alone = SimpleNamespace(constants=memory.constants, joined={})
            assert torch.equal(
                threshold.of_row(memory, "theta", call, sets), threshold.of_row(alone, "theta", call, sets)
            )
    with pytest.raises(ValueError, match="for 2 sets"):
        threshold.of_row(memories[0], "theta", call, 4)
