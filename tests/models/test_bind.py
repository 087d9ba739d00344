"""Binding to real decoder families, and what it refuses."""

import pytest
import torch
from conftest_models import FAMILIES, GAPS, make_method, make_model, run_rows, tokens

from lacuna.models.bind import bind
from lacuna.models.ledger import summary
from lacuna.models.methods.full import Full


@pytest.mark.parametrize("family", FAMILIES)
def test_full_equals_the_stock_model(family):
    """Each family calls attention and caches a little differently; full attention must give its own logits back."""
    model, ids = make_model(family), tokens(2, 40)
    want = model(ids).logits[:, 16:]
    for at_once in (True, False):
        got, _ = run_rows(model, Full(), ids, {}, 17, at_once)
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["topk", "loki", "streaming_llm"])
def test_methods_act_on_every_family(family, name, basis):
    """A family on which a method silently does nothing would report dense results as sparse."""
    model, ids = make_model(family), tokens(2, 40)
    groups = getattr(model.config, "num_key_value_heads", None) or 4
    args = {"streaming_llm": {"sinks": 2, "rows": 8}}.get(name, {"rows": 4})
    method = make_method(name, args)
    once, ledger = run_rows(model, method, ids, basis(groups), 17, True)
    steps, _ = run_rows(model, method, ids, basis(groups), 17, False)
    torch.testing.assert_close(once, steps, atol=2e-5, rtol=1e-4)
    assert summary([ledger.sums()])["decode"]["density"] < 0.5


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("name", GAPS)
def test_no_method_falls_back_to_full_attention(family, name, basis):
    """A method that is unknown to a family's code must act there, or be refused in words: never be dense in silence."""
    model, ids = make_model(family), tokens(2, 40)
    groups = getattr(model.config, "num_key_value_heads", None) or 4
    method = make_method(name, GAPS[name][0])
    try:
        rows, _ = run_rows(model, method, ids, basis(groups), 17, False)
    except ValueError as refused:  # pages and states cannot forget tokens that a sliding window has left
        if family != "mistral" or "window" not in str(refused):
            raise
        pytest.skip(str(refused))
    apart = (rows[:, 1:] - model(ids).logits[:, 17:]).abs().max()
    assert (apart < 1e-4) == (name == "full")


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_with_left_padding_equals_the_stock_model(family):
    """Padded batches go through the mask registry; without an own mask function they would be silently wrong."""
    model, ids = make_model(family), tokens(3, 30)
    mask = (torch.arange(30) >= torch.tensor([0, 5, 11])[:, None]).long()
    ask = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "attention_mask": mask}
    want = model.generate(ids, **ask)
    with bind(model, Full()):
        got = model.generate(ids, **ask)
    assert torch.equal(got, want)


def test_beam_search_reorders_what_is_kept(model):
    """Beams swap their histories; a cache that does not follow would mix texts."""
    ids = tokens(1, 20)
    ask = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(ids, **ask)
    with bind(model, Full()):
        got = model.generate(ids, **ask)
    assert torch.equal(got, want)


def test_right_padding_is_refused(model):
    """Gaps inside a text cannot be told from rows; attending them silently would corrupt scores."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, -3:] = 0
    with bind(model, Full()), pytest.raises(ValueError, match="pad on the left"):
        model(tokens(2, 12), attention_mask=mask)


def test_binding_twice_is_refused(model):
    """A method inside a method would have no defined meaning."""
    with bind(model, Full()), pytest.raises(ValueError, match="bound to a method already"), bind(model, Full()):
        pass


def test_a_foreign_filled_cache_is_refused(model):
    """Rows written without the method are not in its layout."""
    filled = model(tokens(1, 8), use_cache=True).past_key_values
    with bind(model, Full()), pytest.raises(ValueError, match="not written under this method"):
        model(tokens(1, 2), past_key_values=filled)


def test_the_model_is_restored_after_an_error(model):
    """A cell that fails must not leave its method in the model for the next cell."""
    ids = tokens(1, 8)
    before = model(ids).logits
    with pytest.raises(RuntimeError, match="planned"), bind(model, Full()):
        raise RuntimeError("planned")
    assert torch.equal(model(ids).logits, before)


def test_rotation_is_the_models_own(model):
    """StreamingLLM's positions and pre-rotary bases turn keys again; turned back they must be what they were."""
    seen = {}

    class Spy(Full):
        def write(self, memory, k, v):
            seen[memory.site.layer] = (memory.site.rotate, k)
            super().write(memory, k, v)

    ids = tokens(1, 9)
    with bind(model, Spy()):
        hidden = {}
        hook = model.model.layers[0].self_attn.k_proj.register_forward_hook(lambda _m, _a, out: hidden.update(k=out))
        model(ids)
        hook.remove()
    rotate, turned = seen[0]
    plain = hidden["k"].view(1, 9, 2, 16).transpose(1, 2)
    torch.testing.assert_close(rotate(turned, -torch.arange(9)[None]), plain, atol=1e-5, rtol=1e-5)


def test_what_a_layer_reads_whatever_the_text_is_made_once(model):
    """Bases would be read from their files, and random features drawn, anew for each batch of texts."""
    made = []

    class Tabled(type(Full())):
        def constants(self, site):
            made.append(("constants", site.layer))
            return {"own": torch.ones(3, dtype=torch.float64)}

        def tables(self, site):
            made.append(("tables", site.layer))
            return {"table": torch.full((2,), float(site.layer))}

    first, second, ids = Tabled(), Tabled(), tokens(1, 4)
    with bind(model, first) as binding:
        for _ in range(3):
            cache = model(ids, use_cache=True).past_key_values
        held = [memory.constants for memory in binding.memories(cache)]
        assert [(c["own"].dtype, c["table"].tolist()) for c in held] == [
            (torch.float32, [float(i)] * 2) for i in range(len(held))
        ]
        assert sorted(made) == sorted((what, i) for what in ("constants", "tables") for i in range(len(held)))
        binding.method = second  # as an analysis does for a while
        model(ids, use_cache=True)
    assert len(made) == 4 * len(held)
