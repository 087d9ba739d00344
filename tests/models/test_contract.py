"""What every method must do. A method meets these tests by standing in models/methods (and an example beside this file)."""

import copy

import pytest
import torch
from conftest_models import DIM, EVERYTHING, gap_cases, make_method, make_model, run_rows, tokens, whole_logits

from lacuna.models.bind import bind
from lacuna.models.ledger import summary
from lacuna.results import plugins
from lacuna.results.cell import Cell, Spec

NAMES = plugins.names("methods")
HEADS = 4


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_full_budget_is_dense(name, groups, basis):
    """A method that may keep everything and yet changes the logits computes something else than attention."""
    model, ids = make_model(num_key_value_heads=groups), tokens(2, 24)
    want = whole_logits(name, model, ids)[:, 11:]
    method = make_method(name, EVERYTHING[name])
    for at_once in (True, False):
        got, _ = run_rows(model, method, ids, basis(groups), 12, at_once)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("prefill", ["dense", "sparse"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_rows_at_once_equal_rows_one_by_one(name, args, groups, prefill, basis):
    """If the vectorised pass differed from decoding, scores would be of another method than the one that is timed."""
    method = make_method(name, args)
    if not method.vectorised:
        pytest.skip(f"{name} says itself that it must be fed row by row")
    model, ids = make_model(num_key_value_heads=groups), tokens(2, 40)
    once, ledger_once = run_rows(model, method, ids, basis(groups), 17, True, prefill)
    steps, ledger_steps = run_rows(model, method, ids, basis(groups), 17, False, prefill)
    torch.testing.assert_close(once, steps, atol=2e-5, rtol=1e-4)
    a, b = (summary([x.sums()])["decode"] for x in (ledger_once, ledger_steps))
    assert a["density"] == pytest.approx(b["density"], rel=1e-9)
    assert a["tokens"] == b["tokens"] == 2 * 23


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_rows_without_a_prompt_equal_rows_one_by_one(name, args, basis, model):
    """A text scored from its first token on would attend rows that a share of few tokens has dropped in generation."""
    method = make_method(name, args)
    if not method.vectorised:
        pytest.skip(f"{name} says itself that it must be fed row by row")
    ids = tokens(2, 40)
    once, steps = (run_rows(model, method, ids, basis(), 1, at_once)[0] for at_once in (True, False))
    torch.testing.assert_close(once, steps, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_gaps_change_logits_unless_dense(name, args, basis, model):
    """A method that is bound but does not act would report dense results as sparse."""
    ids = tokens(1, 40)
    method = make_method(name, args)
    got, ledger = run_rows(model, method, ids, basis(), 17, False)
    apart = (got[:, 1:] - model(ids).logits[:, 17:]).abs().max()
    told = summary([ledger.sums()])["decode"]
    less = (
        told["bytes_read_per_token"] < told["bytes_dense_per_token"]
    )  # shorter rows are no gaps, but an approximation
    assert (apart > 1e-3) == (method.expects_gaps() or less)
    assert (told["density"] < 1) == method.expects_gaps()


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_a_dense_prompt_is_dense(name, args, basis, model):
    """What a method makes of a prompt comes after it: added while all keys are still attended, it would count twice."""
    method, ids = make_method(name, args), tokens(2, 40)
    if type(method).attend_dense is type(method).attend:
        pytest.skip(f"{name} says itself that it reads a prompt as it reads rows")
    got, _ = run_rows(model, method, ids, basis(), 39, False)
    torch.testing.assert_close(got[:, 0], model(ids[:, :39]).logits[:, -1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_unequal_lengths(name, args, basis, model):
    """A text whose result depends on who shares its batch would make scores depend on the batch size."""
    model = model.double()  # other shapes round otherwise, and in float32 that turned what was nearly a tie
    method, lengths = make_method(name, args), (40, 33, 29)
    texts = [tokens(1, n, seed=n) for n in lengths]
    ids = torch.cat(
        [torch.cat([torch.zeros(1, 40 - n, dtype=torch.long), t], 1) for n, t in zip(lengths, texts, strict=True)]
    )
    mask = (torch.arange(40) >= 40 - torch.tensor(lengths)[:, None]).long()
    batch, ledger = run_rows(model, method, ids, basis(), 28, False, mask=mask)
    read = 0.0
    for i, (n, text) in enumerate(zip(lengths, texts, strict=True)):
        alone, own = run_rows(model, method, text, basis(), n - 12, False)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=2e-5, rtol=1e-4)
        read += float(own.sums()[:, 1, 2].sum())
    assert float(ledger.sums()[:, 1, 2].sum()) == read


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_same_twice(name, args, basis, model):
    """A second prompt must be treated like the first, and the same prompt give the same bits."""
    method, ids = make_method(name, args), tokens(2, 40)
    first, a = run_rows(model, method, ids, basis(), 17, False)
    second, b = run_rows(model, method, ids, basis(), 17, False)
    assert torch.equal(first, second)
    assert torch.equal(a.sums(), b.sums())


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_model_is_itself_again(name, args, basis, model):
    """A binding that leaves something behind would poison whatever is measured next."""
    ids, config = tokens(2, 30), copy.deepcopy(model.config.to_dict())
    before = model(ids).logits
    run_rows(model, make_method(name, args), ids, basis(), 17, False)
    assert torch.equal(model(ids).logits, before)
    assert model.config.to_dict() == config
    assert not model.base_model._forward_pre_hooks


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_bfloat16_is_finite(name, args, basis, model):
    """Half precision is what runs on GPUs; a mask or a softmax that overflows there gives NaN."""
    got, _ = run_rows(model.bfloat16(), make_method(name, args), tokens(2, 40), basis(), 17, False)
    assert got.isfinite().all()


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_ledger_counts_rows_that_are_read(name, args, basis, monkeypatch):
    """Density comes from the ledger; here the rows that matter are found by changing each value and looking.

    One layer and one query row: a cached value row changes the output if and only if it is attended.
    """
    model = make_model(num_hidden_layers=1)
    method, ids = make_method(name, args), tokens(1, 33)
    with bind(model, method, artifacts=basis()) as binding:
        cache = binding.cache()
        model(ids[:, :32], past_key_values=cache, use_cache=True)
        binding.reset()
        memory = cache.layers[0].memory
        names = ("keys", "values", "aux", "extra", "columns", "seen", "host")
        clean = copy.deepcopy({name: getattr(memory, name) for name in names})

        def last_row(change):
            vars(memory).update(
                {n: part for n, part in copy.deepcopy(clean).items() if n != "seen"}, _tokens=clean["seen"]
            )
            change([memory.values.view, *([] if memory.host is None else [memory.host.values])])
            return model(ids[:, 32:], past_key_values=cache, use_cache=True).logits

        base = last_row(lambda _: None)
        said = float(binding.ledger.sums()[0, 1, 2])
        held = [clean["values"].view, *([] if memory.host is None else [memory.host.values])]
        places = [(n, g, r) for n, v in enumerate(held) for g in range(v.shape[1]) for r in range(v.shape[2])]
        read = sum(
            not torch.equal(last_row(lambda v, at=at: v[at[0]][:, at[1], at[2]].add_(100.0)), base) for at in places
        )
        write = type(method).write
        for head in range(2):  # the new row is not there yet to be changed: change it on its way
            bump = torch.zeros(1, 2, 1, 1).index_fill(1, torch.tensor(head), 100.0)
            monkeypatch.setattr(type(method), "write", lambda self, m, k, v, b=bump: write(self, m, k, v + b))
            read += memory.copies * (not torch.equal(last_row(lambda _: None), base))
    assert said * memory.copies == read


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_ledger_bytes(name, args, basis, model):
    """Bytes per token are rows times row size plus what the method's docstring says it reads beside them."""
    ids = tokens(1, 40)
    _, ledger = run_rows(model, make_method(name, args), ids, basis(), 17, False)
    told = summary([ledger.sums()])["decode"]
    contexts = range(18, 41)
    row, groups, layers, steps = 2 * DIM * 4, 2, 2, len(contexts)
    assert told["bytes_dense_per_token"] == pytest.approx(sum(contexts) / steps * row * groups * layers)
    attended = told["rows_attended_mean"] * row * groups * layers
    visible = sum(contexts) / steps * groups * layers
    rank = {"loki-0.5": 8}.get(f"{name}-{args.get('d')}")
    beside = {"topk": visible * DIM * 4, "full": 0, "streaming_llm": 0}.get(name)
    if name == "loki" and rank:
        beside = visible * rank * 4 + layers * groups * DIM * DIM * 4
    if beside is not None:
        assert told["bytes_read_per_token"] == pytest.approx(attended + beside)


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_generate(name, args, basis, model):
    """`generate()` of transformers must decode through the method, and give what our own loop gives."""
    method, ids = make_method(name, args), tokens(2, 30)
    with bind(model, method, artifacts=basis()) as binding:
        theirs = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        rows = summary([binding.ledger.sums()])["decode"]["tokens"]
    with bind(model, method, artifacts=basis()) as binding:
        cache, new, out = binding.cache(), ids, []
        for _ in range(6):
            new = model(new, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            out.append(new)
    assert torch.equal(theirs[:, 30:], torch.cat(out, 1))
    assert rows == 2 * 5


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_beam_search(name, args, basis, model):
    """Beams swap their histories: what a head holds, its marks and states must follow, or it hears what it never read.

    Scores that the search gave its best beams are those of the same tokens, fed one by one; the second text is padded.
    """
    method, ids = make_method(name, args), tokens(2, 24)
    ids[1, :5] = 0
    mask = (ids > 0).long()
    ask = {"max_new_tokens": 6, "do_sample": False, "num_beams": 4, "pad_token_id": 0, "eos_token_id": None}
    with bind(model, method, artifacts=basis()):
        told = model.generate(ids, attention_mask=mask, **ask, output_scores=True, return_dict_in_generate=True)
    best, whole = told.sequences, torch.cat([mask, mask.new_ones(2, 6)], 1)
    logits, _ = run_rows(model, method, best[:, :-1], basis(), 24, False, mask=whole[:, :-1])
    each = logits.log_softmax(-1).gather(2, best[:, 24:, None])[..., 0]
    torch.testing.assert_close(told.sequences_scores, each.mean(1), atol=2e-5, rtol=1e-4)
    assert bool((told.beam_indices[:, :6] % 4 != 0).any())  # the best beams did come from others


@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_round_trip_through_json(name, args):
    """A Cell that reads back differently would get another key and run again for ever."""
    cell = Cell(Spec("m"), Spec(name, 1, args), Spec("needle"))
    assert Cell.from_json(cell.to_json()).key == cell.key
    assert make_method(name, Cell.from_json(cell.to_json()).method.args) == make_method(name, args)
