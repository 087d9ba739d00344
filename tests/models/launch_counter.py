"""Counts what a decode step launches."""

from collections import Counter
from contextlib import contextmanager

from conftest_models import tokens
from torch.utils._python_dispatch import TorchDispatchMode

from lacuna.harness.engine import engine
from lacuna.harness.lm import LM, Session
from lacuna.harness.ranks import Ranks
from lacuna.harness.world import World
from lacuna.models.bind import bind
from lacuna.models.shard import Shard

# What only gives a tensor another shape, or room, launches nothing.
NOTHING = {
    "view", "_unsafe_view", "expand", "slice", "select", "unsqueeze", "squeeze", "transpose", "t", "permute", "detach",
    "alias", "unbind", "split", "split_with_sizes", "as_strided", "empty", "empty_like", "new_empty", "lift_fresh",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts what is called; an op of ours counts once, whatever its eager twin does."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = Counter(), False

    def __torch_dispatch__(self, function, _types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if not self.inside and name not in NOTHING:
            self.found[name] += 1
        return function(*arguments, **(keywords or {}))

    def op(self, op, arguments, twin):
        """An op of ours."""
        self.inside = True
        out = twin(*arguments)
        self.inside = False
        self.found[op.name] += 1
        return out


@contextmanager
def stepping(model, method, files):
    with bind(model, method, artifacts=files) as binding:
        session = Session(LM(model, None, Shard.whole(), World(Ranks(), "cpu")), method, None, binding)
        texts = [tokens(1, n, seed=n)[0].tolist() for n in (30, 24)]
        with engine(session, session.prefill(texts), 6, layers="fused") as steps:
            steps.step()
            steps.step()
            yield steps
