"""What the papers say, once more: row by row, head by head, in Python and float64."""

import math

import torch
from conftest_models import DIM

from lacuna.models.call import Call
from lacuna.models.ledger import Ledger
from lacuna.models.memory import Memory, Site

ROW = 2 * DIM * 4
ONCE = ["snapkv", "pyramidkv", "adakv", "l2norm", "keydiff"]
SMALL = {"snapkv": {"rows": 8, "window": 3}, "pyramidkv": {"rows": 8, "window": 3}, "adakv": {"rows": 8, "window": 3},
         "h2o": {"rows": 8}, "tova": {"rows": 8}, "l2norm": {"rows": 8, "skip": 0}, "keydiff": {"rows": 8}}  # fmt: skip


def draw(rows, heads=4, groups=2, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(batch, heads, rows, DIM, generator=generator)
    k, v = (torch.randn(batch, groups, rows, DIM, generator=generator) for _ in range(2))
    return q, k, v


def fresh(method, groups=2, layer=0, layers=1, batch=2, **changes):
    given = {"layer": layer, "layers": layers, "kv_heads": tuple(range(groups)), "kv_heads_real": groups}
    place = Site(**{**given, "head_dim": DIM, "rotate": None, **changes})
    memory = Memory(place, {**method.constants(place), **method.tables(place)})
    memory.first = torch.zeros(batch, dtype=torch.long)
    return memory


def feed(method, memory, q, k, v, phase, *, causal=False):
    """One call of T rows, known to be plainly causal or not; the method's output and its ledger."""
    ledger, new = Ledger(), q.shape[2]
    method.write(memory, k, v)
    mask = torch.ones(new, memory.seen, dtype=torch.bool).tril(memory.seen - new).expand(q.shape[0], -1, -1)
    call = Call(mask, memory.first, phase, DIM**-0.5, memory.seen, new, q, causal=causal)
    arrived = memory.text_rows_BN(call.first)
    out = (method.attend_dense if phase == "prefill" else method.attend)(q, memory, call, ledger)
    method.settle(memory, call)
    ledger.settle(memory, call, arrived)
    return out, ledger


def prompt(method, q, k, v, **place):
    """A memory after a prompt."""
    memory = fresh(method, k.shape[1], batch=k.shape[0], **place)
    feed(method, memory, q, k, v, "prefill")
    return memory


def held(memory):
    """Token numbers that each head holds, [B][N] of sets."""
    return [[{int(i) for i in head if i >= 0} for head in text] for text in memory.columns]


def row_weights(q, keys, rows):
    """softmax(q.k / sqrt D) over some rows: {row: weight}."""
    rows = sorted(rows)
    weights = (keys[rows].double() @ q.double() / math.sqrt(DIM)).softmax(0)
    return dict(zip(rows, weights.tolist(), strict=True))


def attended(q, k, v, b, h, rows):
    """Output of one query vector over some rows."""
    g = h // (4 // k.shape[1]) if k.shape[1] < 4 else h
    weights = row_weights(q, k[b, g], rows)
    return sum(w * v[b, g, j].double() for j, w in weights.items())


def votes(q, k, b, g, window, join="mean"):
    """Attention of the last rows to all before them, summed over rows and joined over the group."""
    n, share = k.shape[2], q.shape[1] // k.shape[1]
    heads = []
    for h in range(g * share, (g + 1) * share):
        total = [0.0] * (n - window)
        for i in range(n - window, n):
            for j, w in row_weights(q[b, h, i], k[b, g], range(i + 1)).items():
                if j < n - window:
                    total[j] += w
        heads.append(total)
    joined = {"mean": lambda x: sum(x) / len(x), "max": max, "sum": sum}[join]
    return [joined(column) for column in zip(*heads, strict=True)]


def pooled(values, kernel, how):
    """A sliding maximum or mean of odd width, zeros outside."""
    wide = [0.0] * (kernel // 2) + list(values) + [0.0] * (kernel // 2)
    pieces = [wide[i : i + kernel] for i in range(len(values))]
    return [max(p) if how == "max" else sum(p) / kernel for p in pieces]


class Accounts:
    """H2O (adding up) and TOVA (the last row's weights, over given query heads) for one key/value head."""

    def __init__(self, q, k, b, g, budget, recent, adds):
        self.q, self.k, self.b, self.g = q, k, b, g
        self.budget, self.recent, self.adds = budget, recent, adds
        share = q.shape[1] // k.shape[1]
        self.heads = range(g * share, (g + 1) * share) if adds else range(q.shape[1])
        self.held, self.marks = [], {}

    def look(self, i):
        """Row i attends what is held, and leaves marks."""
        gained = dict.fromkeys(self.held, 0.0)
        for h in self.heads:
            own = h // (self.q.shape[1] // self.k.shape[1])
            for j, w in row_weights(self.q[self.b, h, i], self.k[self.b, own], self.held).items():
                gained[j] += w
        self.marks = {j: gained[j] + (self.marks.get(j, 0.0) if self.adds else 0.0) for j in self.held}

    def prefill(self, n):
        """A dense prompt, cut at its end."""
        for i in range(n):
            self.held = list(range(i + 1))
            self.look(i)
        while len(self.held) > self.budget:
            self.drop(n - (self.recent if self.adds else 0))

    def step(self, i):
        """A new row comes, and one goes."""
        self.held.append(i)
        if len(self.held) > self.budget:
            self.drop(i + 1 - self.recent)
        self.look(i)

    def drop(self, before):
        """The lowest mark among rows before a number goes, the oldest first."""
        self.held.remove(min((j for j in self.held if j < before), key=lambda j: (self.marks.get(j, 0.0), j)))


def small(name, budget):
    """The arguments of SMALL with another budget."""
    return {k: v for k, v in SMALL[name].items() if k not in ("keep", "rows", "bytes")} | budget
