"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before anything imports Triton.

This file is read before every test module; some of those import transformers, and transformers imports Triton.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
