"""Fixtures of the model tests; the tools themselves are in conftest_models.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from conftest_models import basis, model  # noqa: F401
