"""Rows that a method acts on, fed in pieces as long texts are, against the same rows at once."""

from itertools import pairwise

import pytest
import torch
from conftest_models import gap_cases, make_method, make_model, run_rows, tokens

from lacuna.models.bind import bind
from lacuna.models.ledger import summary


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("name", "args"), gap_cases())
def test_pieces_give_what_all_rows_at_once_give(name, args, padded, basis):
    """Broken: a text longer than a piece is scored by another rule than a short one."""
    model, ids, files, method = make_model(), tokens(2, 40), basis(), make_method(name, args)
    if not method.vectorised:
        pytest.skip("fed row by row in any case")
    mask = (torch.arange(40) >= torch.tensor([0, 6])[:, None]).long() if padded else None
    want, counted = run_rows(model, method, ids, files, 21, True, mask=mask)
    got, ledger = in_pieces(model, method, ids, files, mask, (0, 21, 30, 33, 40))
    torch.testing.assert_close(got, want[:, -got.shape[1] :], atol=2e-5, rtol=1e-4)
    ours, theirs = (summary([book.sums()]) for book in (ledger, counted))
    assert ours["decode"] == pytest.approx(theirs["decode"])


def in_pieces(model, method, ids, files, mask, borders):
    """Logits of the rows after the first piece, a prompt, and the ledger."""
    out = []
    with bind(model, method, artifacts=files) as binding:
        cache = binding.cache()
        for low, high in pairwise(borders):
            binding.feeding = "decode" if low else "prefill"
            seen = None if mask is None else mask[:, :high]
            where = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, low:high]
            arguments = {"attention_mask": seen, "position_ids": where, "past_key_values": cache}
            out.append(model(ids[:, low:high], use_cache=True, **arguments).logits)
        return torch.cat(out[1:], 1), binding.ledger
