"""Steps replayed as a CUDA graph would: the same operations on the same addresses, without Python deciding anything.

A CPU has no graphs; what one step called is recorded and called again, each result put where the first one lies.
"""

import pytest
import torch
from conftest_models import make_method, make_model
from test_engine import CASES, session_of, texts
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lacuna.harness.engine import WARM_UP, engine, greedy
from lacuna.kernels.op import watched

STEPS = 40  # a window of 16 rows is written over twice
SHORT = (30, 21, 2, 1)  # fewer tokens than sinks, of which some come in replays
WINDOWS = [
    ({"rows": 16, "sinks": 9}, SHORT),
    ({"rows": 16, "sinks": 9, "positions": "text"}, SHORT),
    ({"keep": (0.3, 0.5), "sinks": 9}, SHORT),
]


# What asks the device for a number, or takes its shape from one; a capture on a GPU ends with an error there.
ASKING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "unique", "_unique2", "lift_fresh"}


class Graph(TorchDispatchMode):
    """What is called while it lasts; an op of ours is one call, whatever its eager twin asks the host."""

    def __init__(self):
        super().__init__()
        self.calls, self.inside = [], False

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        if not self.inside:
            assert function.overloadpacket.__name__ not in ASKING, function
            self.calls.append((function, arguments, keywords or {}, out))
        return out

    def op(self, _, arguments, twin):
        """An op of ours."""
        self.inside = True
        out = twin(*arguments)
        self.inside = False
        self.calls.append((twin, arguments, {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        """All of it again."""
        for function, arguments, keywords, out in self.calls:
            again = function(*arguments, **keywords)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def dynamic(model, method, files, lengths):
    """Logits [STEPS, B, V] of a growing cache, and the ledger's sums."""
    with session_of(model, method, files) as session:
        state, found = session.prefill(texts(lengths)), []
        token = greedy(state.logits)
        for _ in range(STEPS):
            found.append(session.step(state, token).clone())
            token = greedy(found[-1])
        return torch.stack(found), session.binding.ledger.sums()


def replayed(model, method, files, lengths):
    """The same of steps that are made at first, then replayed."""
    graph, found = Graph(), []
    with (
        session_of(model, method, files) as session,
        engine(session, session.prefill(texts(lengths)), STEPS, layers="fused") as steps,
    ):
        for made in range(STEPS):
            if made < WARM_UP:
                steps.step()
            elif made == WARM_UP:
                with graph, watched(graph.op):
                    steps.step()
            else:
                graph.replay()
            found.append(steps.logits.clone())
        return torch.stack(found), session.binding.ledger.sums()


@pytest.mark.parametrize(
    ("name", "args", "lengths"),
    [(*case, (30, 24, 19)) for case in CASES] + [("streaming_llm", *case) for case in WINDOWS],
    ids=str,
)
def test_a_replay_goes_on_where_the_last_one_ended(name, args, lengths, basis):
    """What a step works out for the next one would lie where a captured step does not look for it."""
    model, method, files = make_model(), make_method(name, args), basis()
    want, counted = dynamic(model, method, files, lengths)
    got, told = replayed(model, method, files, lengths)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(told, counted, atol=1e-6, rtol=1e-12)
