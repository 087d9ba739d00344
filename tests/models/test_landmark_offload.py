"""Blocks of landmark attention in the host's memory: the same output, and only the chunk and the landmarks held."""

import pytest
import torch
from conftest_models import make_method, make_model, run_rows, tokens

from lacuna.models.bind import bind
from lacuna.models.host_rows import HostRows
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


@pytest.mark.parametrize("most", [10**9, 17, 5])
def test_rows_on_the_host_are_moved_a_bounded_number_of_times(most):
    """A cache that is copied whole at each chunk costs the square of the text; one that mixes up its rows, the text."""
    dice = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 600, 3, generator=dice)
    rows, at, places = None, 0, set()
    while at < 600:
        new = int(torch.randint(1, 9, (), generator=dice))
        rows = HostRows.grown(rows, keys[:, :, at : at + new], values[:, :, at : at + new], most)
        at = min(600, at + new)
        places.add(rows._buffers[0].data_ptr())
        assert torch.equal(rows.keys, keys[:, :, max(0, at - most) : at])
        assert torch.equal(rows.values, values[:, :, max(0, at - most) : at])
    assert len(places) <= 9  # buffers, each twice as long as the one before
    assert rows._buffers[0].shape[2] <= 4 * min(600 + 8, most + 8)
    twin = rows[torch.tensor([0, 0])]
    rows.append(keys[:, :, :3] + 1, values[:, :, :3], most)
    assert torch.equal(twin.keys[1:], keys[:, :, max(0, 600 - most) :])
