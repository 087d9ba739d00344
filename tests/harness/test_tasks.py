"""Tasks against definitions written down here once more, with the model that ships."""

import functools
import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lacuna.harness.task import read_corpus
from lacuna.results.plugins import ROOT

POCKET = ROOT / "models" / "zoo" / "pocket"


@pytest.fixture(scope="module")
def stock():
    """The model and its tokenizer as transformers load them."""
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(POCKET)


@torch.no_grad()
def test_perplexity_is_that_of_transformers(sweep, run, stock):
    """Perplexity of full attention must be what the stock model's own loss says of the same windows."""
    model, tokenizer = stock
    records, _ = run(sweep("method: full\ntask: {perplexity: {window: 96, windows: 3}}\n"))
    (record,) = records.values()
    windows = [tokenizer(d.text, add_special_tokens=False)["input_ids"][:96] for d in read_corpus("prose")[:3]]
    losses = [float(model(torch.tensor([w]), labels=torch.tensor([w])).loss) for w in windows]
    assert record.metrics["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)
    assert [s["nll_nats"] for s in record.samples] == pytest.approx([95 * x for x in losses], rel=1e-5)
    assert record.ledger["decode"]["density"] == 1


@torch.no_grad()
def test_basis_is_the_pca_of_the_keys(sweep, run, store, stock):
    """The streamed covariance must give the principal components that a plain PCA of all keys gives."""
    model, tokenizer = stock
    text = "method: full\ntask: {pca: {tokens: 512, window: 128, rotary: pre}}\n"
    records, _ = run(sweep(text))
    (record,) = records.values()
    tokens = [t for d in read_corpus("calibration") for t in tokenizer(d.text, add_special_tokens=False)["input_ids"]]
    kept = {}
    hook = model.model.layers[3].self_attn.k_proj.register_forward_hook(lambda _m, _a, out: kept.update(k=out))
    model(torch.tensor(tokens[:512]).view(4, 128))
    hook.remove()
    tensors = load_file(store.get_artifact(record.key))
    for head in range(3):
        keys = kept["k"].view(-1, 3, 64)[:, head].double()
        _, values, axes = torch.linalg.svd(keys - keys.mean(0), full_matrices=False)
        shares = values**2 / (values**2).sum()
        torch.testing.assert_close(tensors["layer.3.variance"][head].double(), shares, atol=1e-5, rtol=1e-4)
        ours = tensors["layer.3.basis"][head].double()
        leading = ours[:, :16] @ ours[:, :16].T  # signs are arbitrary: compare the spaces that are spanned
        torch.testing.assert_close(leading, axes[:16].T @ axes[:16], atol=1e-3, rtol=0)


def test_loki_takes_its_calibration(sweep, run):
    """A calibration is a cell that others need: it must run first, once, and be named in those that took it."""
    text = "method: {loki: {keep: [0.5, 0.25], d: 0.5, basis: {tokens: 512, window: 128}}}\n"
    records, _ = run(sweep(text + "task: {perplexity: {window: 64, windows: 1}}\n"))
    statuses = {cell.task.name: record.status for cell, record in records.items()}
    assert statuses == {"pca": "ok", "perplexity": "ok"}
    (basis,) = [cell.key for cell in records if cell.task.name == "pca"]
    assert all(dict(cell.needs) == {"basis": basis} for cell in records if cell.task.name != "pca")


def test_needles_are_planted_where_they_should_be(sweep, run, stock):
    """A needle at a wrong depth, or a text of a wrong length, would draw a wrong heatmap."""
    from lacuna.harness.haystack import Haystack
    from lacuna.harness.tasks.needle import Needle

    class Tokens:
        encode = staticmethod(lambda text: stock[1](text, add_special_tokens=False)["input_ids"])
        decode = staticmethod(stock[1].decode)
        cell = type("C", (), {"seed": 0})

    task = Needle(length=512, keys=3)
    hay = Haystack(Tokens, "prose")
    for depth in task.depths:
        asked = task.question(Tokens, hay, task.drawn(Tokens, depth, 0), 9)
        context, (question,), ((fact,), where) = asked.context, asked.turns, asked.facts
        assert len(context) + len(question) + 9 == 512
        text = stock[1].decode(context)
        at = text.index(f" is {fact.answer}.")
        assert text.count(fact.answer) == 1
        assert len(re.findall(r" is \d{5}\.", text)) == 3
        needle = Tokens.encode(fact.sentence)
        place = next(i for i in range(len(context)) if context[i : i + len(needle)] == needle)
        others = sum(len(Tokens.encode(found)) for found in re.findall(r" The [^.]*? is \d{5}\.", text[: at - 20]))
        prose = 512 - 9 - len(question) - 3 * len(needle)
        target = round(depth * prose)
        assert place - others <= target + 2
        skipped = stock[1].decode(context[place + len(needle) : target + others + len(needle)])
        assert not set(".?!") & set(re.sub(r" The [^.]*? is \d{5}\.", "", skipped))  # no later sentence ends before it
        assert place == 0 or stock[1].decode(context[:place]).rstrip("\"' \n")[-1] in ".?!"
        assert where["placed"] == pytest.approx(place / len(context), abs=1e-6)


@pytest.mark.parametrize("asked", [1, 2])
def test_needles_ask_for_no_position_beyond_their_length(sweep, run, asked):
    """A model made for 4096 positions would be measured at 4103 of them by `length: 4096`."""
    args = f"length: 200, depths: [0.0, 1.0], repeats: 2, keys: 3, asked: {asked}"
    records, _ = run(sweep(f"method: full\ntask: {{needle: {{{args}}}}}\n"))
    (record,) = records.values()
    assert len(record.samples) == 4
    # each position of a text is a row that was prefilled or fed, but for the last token, which nothing follows
    rows = record.ledger["prefill"]["tokens"] + record.ledger["decode"]["tokens"]
    assert rows == 4 * (200 - 1)
    for sample in record.samples if asked == 1 else ():
        assert sample["prompt_tokens"] + sample["completion_tokens"] == 200


def test_full_attention_finds_needles_and_a_window_does_not(sweep, run):
    """If a dense model failed here, or a window passed, the task would not measure retrieval."""
    text = (
        "method: [full, {streaming_llm: {rows: 64}}]\ntask: {needle: {length: 256, depths: [0.0, 0.5], repeats: 2}}\n"
    )
    records, _ = run(sweep(text))
    found = {cell.method.name: record.metrics["accuracy"] for cell, record in records.items()}
    assert found["full"] == 1
    assert found["streaming_llm"] < 0.5


def test_decode_time_has_what_it_promises(sweep, run):
    """Raw times are what statistics are made of; a missing one cannot be made up for later."""
    text = "method: {topk: {rows: 8}}\ntask: {decode_time: {prompt: 64, steps: 5, prefills: 2, batch: 2}}\n"
    records, _ = run(sweep(text))
    (record,) = records.values()
    phases = [s["phase"] for s in record.samples]
    assert (phases.count("prefill"), phases.count("decode")) == (2, 5)
    times = sorted(s["ms"] for s in record.samples if s["phase"] == "decode")
    assert record.metrics["decode_ms_median"] == times[2] > 0
    assert record.metrics["decode_tok_s"] == pytest.approx(2 * 5 / (sum(times) / 1e3))
    assert record.metrics["peak_gib"] >= record.metrics["resident_gib"] > 0.05
    assert record.ledger["decode"]["tokens"] == 2 * 10  # warm-up rows, and the one that is verified, count too


def parity_of(record):
    (sample,) = (s for s in record.samples if s["phase"] == "parity")
    return sample


@pytest.mark.parametrize("fill", ["prefill", "copy"])
def test_steps_at_fixed_places_are_timed_with_their_proof(sweep, run, fill):
    """A speed would be told of steps that nobody held against float64, or whose ledger is not theirs."""
    args = f"prompt: 64, steps: 5, prefills: 1, batch: 3, engine: static, fill: {fill}, temperature: 0.7, layers: fused"
    records, _ = run(sweep(f"method: {{topk: {{rows: 8}}}}\ntask: {{decode_time: {{{args}}}}}\n"))
    (record,) = records.values()
    assert record.status == "ok", record.reason
    sample = parity_of(record)
    # the pocket model was trained: a norm's weights are not all alike, so that its op is really verified
    attention, between = ("topk_decode",), ("append_row", "gate")
    # eight layers with two norms and four products each, and the norm behind the last
    assert sample["calls"] == dict.fromkeys([*attention, *between], 8) | {"add_norm": 17, "skinny_linear": 32}
    assert len(sample["digest"]) == 16
    decode = record.ledger["decode"]
    assert decode["tokens"] == 3 * 10
    assert decode["rows_attended_mean"] == 8
    gains = record.metrics
    assert 1 < gains["ideal_gain"] < gains["amdahl_gain"]
    weights = sum(p.stat().st_size for p in POCKET.glob("*.safetensors"))
    assert gains["step_gb"] * 1e9 > weights


def test_a_prompt_that_was_cut_is_stepped_at_fixed_places(sweep, run):
    """What a cut left of one text would not be what its copies hold, or each of its steps would be over its budget."""
    args = "prompt: 64, steps: 4, prefills: 1, batch: 2, engine: static, fill: copy, layers: fused"
    methods = "{adakv: {rows: 16, window: 8}}, {snapkv: {rows: 16, window: 8, heads: query}}, {pyramidkv: {rows: 16}}"
    records, _ = run(sweep(f"method: [{methods}]\ntask: {{decode_time: {{{args}}}}}\n"))
    assert len(records) == 3
    for record in records.values():
        assert record.status == "ok", record.reason
        decode = record.ledger["decode"]
        steps = decode["tokens"] / 2
        assert decode["rows_attended_mean"] == decode["rows_kept_mean"] == 16 + (steps + 1) / 2


def test_a_wrong_op_makes_a_speed_invalid(sweep, run, monkeypatch):
    """The time of an op that computes something else would stand in a table."""
    import lacuna.kernels.dense_decode as op

    right = op.OP.eager
    calls = []

    @functools.wraps(right)
    def wrong(*arguments, **named):  # wrong in the step, right where it is held against itself
        calls.append(0)
        return right(*arguments, **named) * (1 + 0.01 * (len(calls) % 3 == 1))

    monkeypatch.setitem(vars(op.OP), "eager", wrong)
    records, _ = run(sweep("method: full\ntask: {decode_time: {prompt: 64, steps: 2, prefills: 1}}\n"))
    (record,) = records.values()
    assert record.status == "invalid"
    assert "failed verification" in record.reason


def test_another_gpu_is_refused(sweep, run):
    """A time of the machine at hand would be told as that of the machine that was named."""
    records, _ = run(sweep("method: full\ntask: {decode_time: {prompt: 64, steps: 2, gpu: H200}}\n"))
    (record,) = records.values()
    assert (record.status, record.metrics) == ("error", {})
    assert "this is a CPU" in record.reason


def test_a_graph_on_a_cpu_is_refused(sweep, run):
    """Eager steps would be timed under the name of a graph."""
    records, _ = run(sweep("method: full\ntask: {decode_time: {prompt: 64, steps: 2, engine: graph}}\n"))
    (record,) = records.values()
    assert record.status == "error"
    assert "engine: static" in record.reason


def test_query_aware_and_sparse_prefill_are_other_questions(sweep, run):
    """Protocol switches change the result and therefore the key; the ledger shows what they did."""
    text = """
        method: {topk: {rows: 16}}
        task: {needle: {length: 256, depths: [0.5], repeats: 2}}
        prefill: [dense, sparse]
        query_aware: [false, true]
    """
    records, _ = run(sweep(text))
    assert len({cell.key for cell in records}) == 4
    for cell, record in records.items():
        assert (record.ledger["prefill"]["density"] < 1) == (cell.prefill == "sparse")
        rows = record.ledger["decode"]["tokens"] / 2
        assert (rows < 10) == cell.query_aware


def test_a_corpus_of_ones_own(sweep, run, tmp_path):
    """Users measure on their own text; its content, not its place, decides the key."""
    mine = tmp_path / "mine.txt"
    mine.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    swept = sweep(f"method: full\ntask: {{perplexity: {{corpus: {mine}, window: 64, windows: 1}}}}\n")
    records, _ = run(swept)
    assert next(iter(records.values())).status == "ok"
    mine.write_text("Another text altogether, and just as long as it has to be. " * 40)
    again = sweep(f"method: full\ntask: {{perplexity: {{corpus: {mine}, window: 64, windows: 1}}}}\n", "t")
    assert again.cells[0].key != swept.cells[0].key
    (tmp_path / "elsewhere").mkdir()
    moved = mine.rename(tmp_path / "elsewhere" / "mine.txt")
    third = sweep(f"method: full\ntask: {{perplexity: {{corpus: {moved}, window: 64, windows: 1}}}}\n", "u")
    assert third.cells[0].key == again.cells[0].key
