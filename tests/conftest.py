"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before anything imports Triton.

This file is read before every test module; some of those import transformers, and transformers imports Triton.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def outcome(capsys):
    """A function of what is typed: exit code, output and errors of the command, whether or not argparse ends it."""
    from lacuna import cli

    def ask(*argv):
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask
