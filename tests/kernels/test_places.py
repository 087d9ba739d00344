"""Places of chosen rows where several parts, or several blocks, find them one after the other.

Shape legend: B batch, N sets of rows, S rows in the cache, K width.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from lacuna.kernels.select_topk.fused import empty_choice, select_topk
from lacuna.kernels.select_topk.joint import fused as joint
from lacuna.kernels.select_topk.joint.fused import board_words, chunk_of, select_joint
from lacuna.kernels.tiling import SelectPlan

SPEC = importlib.util.spec_from_file_location("ops", Path(__file__).with_name("test_ops.py"))
ops = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ops)


@pytest.mark.parametrize("rows", [700, 1100])
@pytest.mark.parametrize(
    ("kind", "k"), [("normal", 300), ("normal", 0), ("ties", 300), ("constant", 300), ("wide", 300), ("hidden", 5000)]
)
def test_rows_of_several_parts_are_those_of_the_definition(kind, k, rows, device):
    """Broken: sums of four groups in one number run over, or ties of a part are counted from its own beginning."""
    s_BNS = ops.scores(kind, rows, device)[:, :2].contiguous()
    k_B = torch.tensor([k, k // 2], dtype=torch.int32, device=device)
    with ops.poisoned_memory():
        index_BNK, count_BN = select_topk(s_BNS, k_B, 500, plan=SelectPlan(4, 512))
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, 500)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


@pytest.mark.parametrize(("kind", "k"), [("normal", 300), ("ties", 300), ("constant", 300), ("hidden", 5000)])
def test_rows_of_several_blocks_are_those_of_the_definition(kind, k, device):
    """Broken: a block places its rows without those of the blocks before it, or with too many ties."""
    s_BNS = ops.scores(kind, 1299, device)[:, :2].contiguous()
    k_B = torch.tensor([k, k // 2], dtype=torch.int32, device=device)
    with ops.poisoned_memory():
        index_BNK, count_BN = empty_choice(2, 2, 1500, s_BNS.device)
        select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512, part_rows=512)
    expected_BNK, expected_BN = ops.definitions.select_topk(s_BNS, k_B, 1500)
    assert torch.equal(count_BN.long().cpu(), expected_BN)
    assert torch.equal(index_BNK.long().cpu(), expected_BNK)


@pytest.mark.parametrize("multiprocessor_count", [1, 2, 20, 46, 63, 64, 108, 128, 132])
def test_blocks_that_wait_leave_room_beside_those_of_another_launch(multiprocessor_count, monkeypatch):
    """Broken: two halves of the sets on two streams fill a GPU with blocks that wait for others, and stall for ever."""
    monkeypatch.setattr(joint, "interpreted", lambda: False)
    monkeypatch.setattr(joint, "multiprocessors", lambda _device: multiprocessor_count)
    for rows in (40961, 100000, 262144, 262145, 1 << 20, 1 << 21):
        chunk_rows = chunk_of(rows, torch.device("cuda"))
        waiting = 2 * (-(-rows // chunk_rows) - 1)
        assert waiting < 2 * multiprocessor_count


@pytest.mark.parametrize(("rows", "chunk_rows"), [(40961, 4096), (262144, 4096), (262145, 8192), (1 << 21, 32768)])
def test_rows_are_cut_as_they_were_timed(rows, chunk_rows, monkeypatch):
    """Broken: a GPU with room for more blocks of a set gets other chunks than those whose times are published."""
    monkeypatch.setattr(joint, "interpreted", lambda: False)
    monkeypatch.setattr(joint, "multiprocessors", lambda _device: 132)
    assert chunk_of(rows, torch.device("cuda")) == chunk_rows


def test_more_blocks_than_may_wait_are_refused(monkeypatch):
    """Broken: rows in small chunks are more blocks than a GPU holds, or than a word counts."""
    monkeypatch.setattr(joint, "interpreted", lambda: False)
    s_BNS, k_B = torch.zeros(1, 1, 1299), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="at most 64 blocks"):
        select_joint(s_BNS, k_B, *empty_choice(1, 1, 4, s_BNS.device), chunk_rows=16)


def test_blocks_too_small_to_tell_their_places_are_refused(monkeypatch):
    """Broken: a block of fewer rows than four groups takes rows of the next block for its own."""
    monkeypatch.setattr(joint, "interpreted", lambda: False)
    s_BNS, k_B = torch.zeros(1, 1, 1299), torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="at least 512 rows"):
        select_joint(s_BNS, k_B, *empty_choice(1, 1, 4, s_BNS.device), chunk_rows=256)


def test_a_board_of_too_few_words_is_refused(device):
    """Broken: blocks count in memory that is not theirs."""
    s_BNS, k_B = torch.zeros(2, 2, 1299, device=device), torch.ones(2, dtype=torch.int32, device=device)
    words = board_words(4, 1299, device, 512)
    assert words == 1 + 4 * (3 * 17 + 3 + 2 * joint.STEPS)
    board = torch.zeros(words, dtype=torch.int64, device=device)
    index_BNK, count_BN = empty_choice(2, 2, 4, device)
    select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512, board=board)
    assert index_BNK.tolist() == [[[0, -1, -1, -1]] * 2] * 2
    with pytest.raises(ValueError, match="board of at least"):
        select_joint(s_BNS, k_B, index_BNK, count_BN, chunk_rows=512, board=board[:600])
