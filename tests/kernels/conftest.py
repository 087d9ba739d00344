"""Kernels are tested on a GPU where there is one, and otherwise in Triton's interpreter."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the tools beside the tests


@pytest.fixture(scope="session")
def device():
    """Where both twins run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
