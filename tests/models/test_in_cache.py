"""H2O with positions in the cache, where no text of a batch begins at once."""

import pytest
import torch
from conftest_models import make_method, make_model, run_rows, tokens


@pytest.mark.parametrize("prefill", ["dense", "sparse"])
def test_columns_that_are_padding_in_all_texts_change_nothing(prefill, basis):
    """Broken: a batch whose longest text is padded ends in an error, since its first rows hold nothing."""
    model, ids, method = make_model(), tokens(2, 40), make_method("h2o", {"rows": 7, "recent": 3, "positions": "cache"})
    short = torch.arange(40) >= torch.tensor([0, 2])[:, None]
    want, _ = run_rows(model, method, ids, basis(), 20, True, prefill=prefill, mask=short.long())
    wide, mask = (torch.nn.functional.pad(x.long(), (3, 0)) for x in (ids, short))
    got, _ = run_rows(model, method, wide, basis(), 23, True, prefill=prefill, mask=mask)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
