"""Kernels are tested on a GPU where there is one, and otherwise in Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    """Where both twins run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
