"""Choices from long rows of every kind of scores, whose search ends among few scores; several blocks hold a row on a GPU.

Shape legend: B batch, N sets of rows, S rows in the cache, K width.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lacuna.kernels.select_topk.fused import empty_choice
from lacuna.kernels.select_topk.joint.fused import board_words, select_joint

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)

KINDS = ("normal", "near", "crowd", "two hills", "heavy", "steps", "constant", "forced", "hidden", "rising")


def scores(kind, rows, wanted, seed):
    """Two sets of scores, (1, 2, S)."""
    generator = torch.Generator().manual_seed(seed)
    s_BNS = torch.randn(1, 2, rows, generator=generator)
    more_BNS = torch.randn(1, 2, rows, generator=generator)
    if kind == "crowd":  # a block has more of the scores in question than it can tell
        border_BN1 = s_BNS.topk(wanted, -1).values[..., -1:]
        s_BNS[..., 1000:1100] = border_BN1 + 1e-3 * more_BNS[..., :100]
    made = {
        "near": lambda: 1 + 1e-6 * s_BNS,
        "two hills": lambda: s_BNS + 1e4 * (more_BNS > 0.75),
        "heavy": lambda: s_BNS * (8 * more_BNS).exp(),
        "steps": lambda: (4 * s_BNS).round() / 4,
        "constant": lambda: torch.full_like(s_BNS, -0.25),
        "forced": lambda: s_BNS.masked_fill(more_BNS > 0.5, math.inf),
        "hidden": lambda: s_BNS.masked_fill(more_BNS > 0, -math.inf).masked_fill(more_BNS < -1, math.nan),
        "rising": lambda: s_BNS.sort(-1).values,
    }
    return made[kind]() if kind in made else s_BNS


def told(s_BNS):
    """What `scores_told` tells, as one block would."""
    seen = s_BNS > -math.inf
    known = s_BNS.masked_fill(~seen, 0.0)
    return torch.stack([seen.sum(-1).float(), *(known.pow(n).sum(-1) for n in (1, 2, 3))], -1)[:, :, None].contiguous()


@pytest.mark.parametrize("part", [4, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_that_ends_among_few_scores_chooses_the_same_rows(kind, part, device):
    """Broken: a block ranks other scores than the rest of its set, or counts those of the blocks before it wrongly."""
    rows, draws, repeats = (131072 - 77, 3, 10) if device.type == "cuda" else (3001, 1, 1)
    wanted = max(1, rows // part)
    for seed in range(draws):
        s_BNS = scores(kind, rows, wanted, seed).to(device)
        k_B = torch.tensor([wanted], dtype=torch.int32, device=device)
        expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, wanted)
        for known in (told(s_BNS), None) * repeats:
            with ops.poisoned_memory():
                index_BNK, count_BN = empty_choice(1, 2, wanted, device)
                board = torch.zeros(board_words(2, rows, device), dtype=torch.int64, device=device)
                select_joint(s_BNS, k_B, index_BNK, count_BN, told_BNX4=known, board=board)
            assert torch.equal(count_BN.long().cpu(), expected_BN)
            assert torch.equal(index_BNK.long().cpu(), expected_BNK)
