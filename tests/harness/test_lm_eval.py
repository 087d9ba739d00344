"""lm-eval's tasks over our session, held against lm-eval's own Hugging Face model."""

import json
from dataclasses import replace

import pytest
from lm_eval_reference import same, theirs

from lacuna.harness import generation, likelihood
from lacuna.harness.tasks.lm_eval import LmEval

CHOICE = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: nothing.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITE = """
task: write
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
"""
ROLL = """
task: roll
dataset_path: json
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{choices[0]}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
ROWS = [
    {"question": "What is the colour of the grass in the garden?", "choices": ["green", "as red as a rose", "a"], "gold": 0},
    {"question": "Who came to the door?", "choices": ["the old man", "nobody"], "gold": 1},
    {"question": "Where is the king? He is in the house, where", "choices": ["he sits", "he was told to wait"], "gold": 1},
    {"question": "And then?", "choices": ["it rained", "it was a fine day, and they went out"], "gold": 0},
]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """The three kinds of tasks, and rows for them."""
    for name, text in (("choice", CHOICE), ("write", WRITE), ("roll", ROLL)):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return {p.name: str(p) for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("file", "args"),
    [
        ("choice", {"shots": 0}),
        ("choice", {"shots": 2, "shots_data": "rows.jsonl", "metric": "acc_norm"}),
        ("write", {"shots": 0}),
        ("roll", {"length": 9}),
        ("choice", {"shots": 0, "length": 12}),  # prompts lose their beginning
    ],
)
def test_dense_results_are_lm_eval_s_own(lm, under, files, file, args):
    """Numbers of ours could not stand beside published ones."""
    args = {k: files.get(v, v) for k, v in args.items()}
    task = LmEval(file=files[f"{file}.yaml"], data=files["rows.jsonl"], **args)
    with under() as session:
        ours = task.run(session)
    found = theirs(lm, task, args.get("length", 4096))
    same(ours, found)
    (docs,) = found[1].values()
    assert len(ours.samples) == len(docs) == 4
    if file == "choice":
        metric = args.get("metric", "acc")
        assert [s["score"] for s in ours.samples] == [d[metric] for d in docs]
        assert (ours.metrics["truncated"] > 0) == ("length" in args)
    if file == "write":
        assert all(s["completion_tokens"] <= 12 and s["answer_s"] > 0 for s in ours.samples)


FORMAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} / {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"


@pytest.mark.parametrize("chat", ["message", "turns"])
@pytest.mark.parametrize("file", ["choice", "write"])
def test_chats_are_those_of_lm_eval(lm, under, files, monkeypatch, file, chat):
    """A chat model that is asked outside its format answers another question than the published one."""
    monkeypatch.setattr(lm.tokenizer, "chat_template", FORMAT, raising=False)
    shots = {"shots": 2, "shots_data": files["rows.jsonl"]} if file == "choice" else {"shots": 0}
    task = LmEval(file=files[f"{file}.yaml"], data=files["rows.jsonl"], chat=chat, **shots)
    plain = replace(task, chat="none")
    with under() as session:
        ours = task.run(session)
    with under() as session:
        bare = plain.run(session)
    same(ours, theirs(lm, task, 4096))
    longer = [a["prompt_tokens"] - b["prompt_tokens"] for a, b in zip(ours.samples, bare.samples, strict=True)]
    assert min(longer) > 5  # the format was there
    monkeypatch.setattr(lm.tokenizer, "chat_template", None, raising=False)
    with under() as session, pytest.raises(ValueError, match="has no chat template: leave chat at none"):
        task.run(session)


def test_a_tokenizer_without_an_end_is_said(lm, under, files):
    """A base model's tokenizer may have no special token; a traceback of int(None) names none."""
    before, lm.tokenizer.eos_token = lm.tokenizer.eos_token, None
    try:
        with under() as session, pytest.raises(ValueError, match="has no end-of-text token"):
            LmEval(file=files["write.yaml"], data=files["rows.jsonl"], shots=0).run(session)
    finally:
        lm.tokenizer.eos_token = before


def test_a_method_acts_on_what_is_scored(under, files):
    """Log-likelihood tasks that only prefill report dense results as sparse."""
    found = {}
    for name, method in (("full", "full"), ("sparse", {"streaming_llm": {"sinks": 1, "rows": 5}})):
        with under(method) as session:
            task = LmEval(file=files["choice.yaml"], data=files["rows.jsonl"], shots=0)
            task.run(session)
            found[name] = session.binding.ledger, dict(session.journal.done)
    from lacuna.models.ledger import summary

    assert summary([found["full"][0].sums()])["decode"]["density"] == 1
    assert summary([found["sparse"][0].sums()])["decode"]["density"] < 0.6
    scored = sum(s["completion_tokens"] for s in found["full"][1].values())
    assert summary([found["full"][0].sums()])["decode"]["tokens"] == scored
    assert [s["logprob_nats"] for s in found["full"][1].values()] != [
        s["logprob_nats"] for s in found["sparse"][1].values()
    ]


@pytest.mark.parametrize("method", ["full", {"topk": {"rows": 4}}])
def test_results_do_not_depend_on_the_batch(under, files, monkeypatch, method):
    """Loki's harness gave other scores for other batch sizes."""
    found = []
    for at_once in (1, 100_000):
        monkeypatch.setattr(generation, "TOKENS_AT_ONCE", at_once)
        monkeypatch.setattr(likelihood, "TOKENS_AT_ONCE", at_once)
        for name in ("choice", "write"):
            with under(method) as session:
                made = LmEval(file=files[f"{name}.yaml"], data=files["rows.jsonl"], shots=0).run(session)
            samples = [{k: v for k, v in s.items() if k != "answer_s"} for s in made.samples]
            found.append((samples, made.metrics["score"]))
    assert found[:2] == found[2:]


def test_no_text_is_encoded_twice(lm, under, files, monkeypatch):
    """On MMLU with five shots, encoding each context for each choice and method takes longer than scoring."""
    seen, own = [], type(lm.tokenizer).__call__
    lm.__dict__.pop("_encode", None)

    def call(self, text, *args, **more):
        seen.append((text, more.get("add_special_tokens")))
        return own(self, text, *args, **more)

    monkeypatch.setattr(type(lm.tokenizer), "__call__", call)
    for method in ("full", {"topk": {"rows": 4}}):
        with under(method) as session:
            LmEval(file=files["choice.yaml"], data=files["rows.jsonl"], shots=0).run(session)
    assert len(seen) == len(set(seen)) > 4


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "one of both"),
        ({"task": "hellasvag", "data": "rows.jsonl"}, "did you mean 'hellaswag'"),
        ({"file": "choice.yaml", "data": "rows.jsonl", "shots": 2}, "give shots_data"),
        ({"file": "choice.yaml", "data": "rows.jsonl", "metric": "f1"}, "has no metric 'f1'"),
        ({"task": "hellaswag", "data": "rows.jsonl"}, "lacks the field 'ctx'"),
        ({"file": "choice.yaml", "shots_data": "rows.jsonl"}, "give both or none"),
    ],
)
def test_what_cannot_be_run_is_said(under, files, args, said):
    """A library's traceback does not tell a user which argument to change."""
    with pytest.raises(ValueError, match=said), under() as session:
        LmEval(**{k: files.get(v, v) if isinstance(v, str) else v for k, v in args.items()}).run(session)
