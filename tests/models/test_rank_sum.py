"""Sums that ranks leave to the norm behind them: where their parts lie, and that layers add up the same.

Shapes: X ranks, C rows, B texts, E hidden size, F inputs.
"""

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed._symmetric_memory as symmetric
from conftest_models import make_method, make_model
from launch_counter import stepping

from lacuna.kernels.sum_norm.meeting import Meeting, addresses_of
from lacuna.models import rank_sum, shared_rows
from lacuna.models.rank_sum import Parts, RankSum
from lacuna.models.shared_rows import SharedRows

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mpirun import mpirun  # noqa: E402


@pytest.fixture
def two_ranks(monkeypatch):
    """This process is rank 0 of two; the other's memory is here too, and shows what it would have written."""
    told = SimpleNamespace(barriers=0, writes=True)

    def rendezvous(whole, _):
        # of a pool: what ranks share begins some bytes before
        told.buffers = [whole, torch.full_like(whole, 77)]
        before = whole.storage_offset()

        def get_buffer(rank, shape, dtype, apart=0):
            assert (shape, dtype) == (whole.shape, torch.uint8)
            if rank:
                return told.buffers[rank] if apart == before else torch.full_like(whole, 88)
            return whole.as_strided(whole.shape, whole.stride(), apart)

        return SimpleNamespace(get_buffer=get_buffer)

    def barrier(group):
        assert group == "group"
        told.barriers += 1
        if told.writes:
            told.buffers[1].fill_(2 if told.barriers == 1 else 0)

    monkeypatch.setattr(symmetric, "empty", lambda size, **kinds: torch.empty(size + 512, **kinds)[512:])
    monkeypatch.setattr(symmetric, "rendezvous", rendezvous)
    fake = SimpleNamespace(get_world_size=lambda _: 2, get_rank=lambda _: 0, barrier=barrier)
    monkeypatch.setattr(shared_rows, "dist", fake)
    monkeypatch.setattr(rank_sum, "dist", SimpleNamespace(get_backend=lambda _: "fake"))
    return told


def test_places_and_flags_do_not_overlap(two_ranks):
    """A part would overwrite the flags, or the part that a slow rank still reads: both show only as wrong logits."""
    shared = SharedRows("group", 3, 40, torch.zeros(1, dtype=torch.bfloat16))
    for rank in range(2):
        spans = [(place[rank].data_ptr(), place[rank].nbytes) for place in shared.places]
        flags = shared.meetings[0].memory[rank]
        spans = sorted([*spans, (flags.data_ptr(), flags.nbytes)])
        assert [size for _, size in spans] == [240, 240, 24]
        assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))
        assert not flags.any()
    for place, meeting in zip(shared.places, shared.meetings, strict=True):
        assert meeting.parts_X.tolist() == [part.data_ptr() for part in place]
        assert meeting.flags_X.tolist() == [flags.data_ptr() for flags in meeting.memory[:2]]
    assert shared.meetings[0].count_C is shared.meetings[1].count_C
    assert two_ranks.barriers == 3


def test_memory_that_shows_something_else_is_refused(two_ranks):
    """Sums would be of whatever lies there."""
    two_ranks.writes = False
    with pytest.raises(RuntimeError, match=r"memory shared by 2 ranks shows \[\(1, 1\), \(77, 77\)\] to rank 0"):
        SharedRows("group", 3, 40, torch.zeros(1))


def test_a_product_is_left_where_others_read_it(two_ranks):
    """A part would be written to the place of the sum before, or a large one slow all ranks down."""
    adder = RankSum("group", torch.device("cpu"))
    x_BF, weight_EF = torch.randn(2, 8), torch.randn(40, 8)
    assert adder.parts(x_BF, weight_EF, 0) is None, "nobody said that ranks can meet"
    adder._meets = True
    for place in (0, 1):
        late = adder.parts(x_BF, weight_EF, place)
        torch.testing.assert_close(late.parts[0], x_BF @ weight_EF.T)
        assert late.parts[0].data_ptr() == late.meeting.parts_X[0]
    assert late.parts[0].data_ptr() != adder.parts(x_BF, weight_EF, 0).parts[0].data_ptr()
    assert two_ranks.barriers == 3, "made once"
    assert adder.parts(torch.zeros(4000, 8), weight_EF, 0) is None


class _Halved(torch.nn.Module):
    """A projection whose inputs two ranks share; both are here."""

    def __init__(self, own):
        super().__init__()
        self.own, self.places = own, []

    def unsummed(self, x_BF, place):
        self.places.append(place)
        half = x_BF.shape[1] // 2
        parts = tuple(
            x @ weight.T for x, weight in zip(x_BF.split(half, 1), self.own.weight.split(half, 1), strict=True)
        )
        flags = tuple(torch.full((x_BF.shape[0], 2), 2**30, dtype=torch.int32) for _ in parts)
        count_C = torch.zeros(x_BF.shape[0], dtype=torch.int32)
        return Parts(parts, Meeting(addresses_of(parts), addresses_of(flags), count_C, 0, flags))

    def forward(self, x):
        return self.own(x)


def test_layers_whose_sums_are_left_to_the_norm_give_the_same(basis):
    """A part that is not added, added twice, or read where the sum before it lies, gives other logits."""
    found = []
    for halved in (False, True):
        model = make_model(num_key_value_heads=2)
        for layer in model.model.layers:
            if halved:
                layer.self_attn.o_proj, layer.mlp.down_proj = map(
                    _Halved, (layer.self_attn.o_proj, layer.mlp.down_proj)
                )
        with stepping(model, make_method("full", {}), basis()) as steps:
            found.append(steps.logits)
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=0)
    layer = model.model.layers[0]
    assert set(layer.self_attn.o_proj.places) == {0}
    assert set(layer.mlp.down_proj.places) == {1}


@pytest.mark.mpi
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@pytest.mark.parametrize(("dtype", "most"), [("float32", 2e-4), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("ranks", [2, 4])
def test_gpus_that_meet_in_the_norm_give_the_logits_of_one(ranks, dtype, most, tmp_path):
    """Ranks would read a part before it is written, or one that is overwritten: wrong logits, and not each time."""
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} CUDA GPUs")
    mpirun(1, HERE / "meeting_worker.py", tmp_path / "one.pt", dtype)
    mpirun(ranks, HERE / "meeting_worker.py", tmp_path / "all.pt", dtype)
    one, all_ = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "all"))
    assert "with the norm in one launch" in all_["sums"]
    torch.testing.assert_close(all_["logits"], one["logits"], atol=most, rtol=0)
