"""Kernels of dense attention: one result, and a refusal where there is no kernel."""

import pytest
import torch
from conftest_models import make_model, run_rows, tokens

from lacuna.models.methods.full import Full


@pytest.mark.parametrize("kernel", ["lacuna", "eager", "sdpa", "flash"])
@pytest.mark.parametrize("at_once", [True, False])
def test_kernels_agree(kernel, at_once):
    """A baseline that depends on its kernel is none."""
    model, ids = make_model(), tokens(2, 30)
    got, _ = run_rows(model, Full(kernel=kernel), ids, {}, 17, at_once)
    torch.testing.assert_close(got, model(ids).logits[:, 16:], atol=2e-5, rtol=1e-4)


def test_flash_refuses_padding():
    """It takes no mask: padding would be attended, silently."""
    mask = (torch.arange(30) >= torch.tensor([0, 7])[:, None]).long()
    with pytest.raises(ValueError, match="attends all earlier tokens, padding too: set kernel: sdpa"):
        run_rows(make_model(), Full(kernel="flash"), tokens(2, 30), {}, 17, True, mask=mask)


def test_flash_is_refused_where_it_is_not(monkeypatch):
    """Another kernel in its place would be timed under its name."""

    def none(*args, **kwargs):
        raise RuntimeError("No available kernel. Aborting execution.")  # what PyTorch says of a GPU in float32

    monkeypatch.setattr("lacuna.models.methods.full.scaled_dot_product_attention", none)
    with pytest.raises(ValueError, match="no flash kernel for float32 with heads of 16 on cpu: set kernel: sdpa"):
        run_rows(make_model(), Full(kernel="flash"), tokens(1, 30), {}, 17, False)
