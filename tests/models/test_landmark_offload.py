"""Blocks of landmark attention in the host's memory: the same output, and only the chunk and the landmarks held."""

import pytest
import torch
from conftest_models import make_method, make_model, run_rows, tokens

from lacuna.models.bind import bind
from lacuna.models.ledger import summary


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("more", [{}, {"blocks": 3}, {"choose": "head"}])
def test_what_lies_where_does_not_matter(more, at_once):
    """A block that is fetched from the wrong place, or not turned, would be another text's."""
    model, ids = make_model(), tokens(2, 45)
    ledgers, outputs = {}, {}
    for place in ("none", "host"):
        method = make_method("landmark", {"rows": 12, "chunk": 4, "offload": place, **more})
        outputs[place], ledgers[place] = run_rows(model, method, ids, {}, 20, at_once)
    torch.testing.assert_close(outputs["host"], outputs["none"], atol=1e-5, rtol=1e-5)
    told = {place: summary([ledger.sums()]) for place, ledger in ledgers.items()}
    assert told["host"]["decode"]["density"] == told["none"]["decode"]["density"]


@torch.no_grad()
def test_the_device_holds_the_chunk_and_the_landmarks():
    """Offloading that leaves a copy behind saves nothing."""
    model, ids = make_model(), tokens(2, 41)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # its chunks begin elsewhere
    found = {}
    for place in ("none", "host"):
        with bind(model, make_method("landmark", {"rows": 12, "chunk": 8, "offload": place})) as binding:
            cache = binding.cache()
            first = model(ids[:, :30], attention_mask=mask[:, :30], past_key_values=cache).logits
            binding.memories(cache)[0].reorder(torch.tensor([1, 0]))
            binding.memories(cache)[0].reorder(torch.tensor([1, 0]))
            later = model(ids[:, 30:], attention_mask=mask, past_key_values=cache).logits
            found[place] = (torch.cat([first, later], 1), binding.memories(cache)[0])
    torch.testing.assert_close(found["host"][0], found["none"][0], atol=1e-5, rtol=1e-5)
    memory, whole = found["host"][1], found["none"][1]
    assert whole.keys.count == 41
    assert memory.keys.count == 41 - 37  # the second text's chunk begins at 40, the first one's at 32 + 5
    assert memory.host.count == 37
    assert memory.held_bytes < 0.4 * whole.held_bytes
