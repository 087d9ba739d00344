"""Landmark attention at inference against the paper's rules, row by row and key by key."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest_models import DIM as WIDE
from conftest_models import make_method, make_model, run_rows, tokens

from lacuna.harness.training.kinds import WithLandmarks
from lacuna.harness.training.landmarks import Batch, Landmarks
from lacuna.models.bind import bind
from lacuna.models.call import Call
from lacuna.models.inserted import Feed
from lacuna.models.ledger import Ledger, summary
from lacuna.models.load import attending
from lacuna.models.memory import Memory, Site

BLOCK, DIM, HEADS, GROUPS = 3, 4, 4, 2
CONFIG = SimpleNamespace(lacuna_landmark={"token": 0, "control": 0, "block": BLOCK, "length": 64, "gated": False})


def turn(x, by):
    """A rotary embedding of two frequencies."""
    return turn.by(by)(x)


def turned(x, by):
    angle = by[:, None, :, None] * torch.tensor([1.0, 0.3])
    a, b = x[..., :2], x[..., 2:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def between(low, _high, _like):
    """Any positions, counted from low, each row by several."""

    def turns(x, by):
        each = (by + low).expand(-1, x.shape[1], -1, -1)
        heads = [[turned(x[:, h : h + 1], each[:, h, :, k]) for k in range(by.shape[3])] for h in range(x.shape[1])]
        return torch.cat([torch.stack(head, 3) for head in heads], 1)

    return turns


turn.by = lambda by: lambda x: turned(x, by)
turn.between = between


def one(x, by):
    return turn(x.view(1, 1, 1, -1), torch.tensor([[by]])).flatten()


def remembering(config, first=(0,)):
    memory = Memory(Site(0, 1, (0, 1), 2, DIM, turn, config=config), {})
    memory.first = torch.tensor(first)
    return memory


def feed(marks):
    return Feed(marks=marks)


def by_the_paper(q, k, v, marks, args, number, head, so_far, control=None):
    """Section 3.3 for one row of one head: slots, scores, top-k and groups in plain numbers; `control`: section 4.4."""
    size, chunk, top = BLOCK + 1, args["chunk"], (args["rows"] - args["chunk"]) // BLOCK
    group = head * GROUPS // HEADS
    start = number // chunk * chunk
    blocks = list(range(start // BLOCK))[-args.get("blocks", 10**6) :]
    many = len(blocks)
    base = min(many, top + 1) * size
    place = base + number - start + (number - start) // BLOCK
    query, scale = one(q[0, head, number], place), 0.5

    def slot(i, n):  # the i-th of the cached blocks
        return i if n <= top else max(0, i - (n - top) + 1)

    score = {
        b: float(query @ one(marks[0, group, b], slot(i, many) * size + BLOCK)) * scale for i, b in enumerate(blocks)
    }
    chosen = sorted(sorted(score, key=lambda b: (-so_far(score, b), b))[:top])
    groups = []  # (weight's logit of the block, its rows' logits, values)
    for i, b in enumerate(chosen):
        at = (i + (many > top and b in blocks[-top:])) * size
        rows = [float(query @ one(k[0, group, b * BLOCK + c], at + c)) * scale for c in range(BLOCK)]
        lead = float(query @ one(marks[0, group, b], at + BLOCK)) * scale
        groups.append((lead, rows, v[0, group, b * BLOCK : (b + 1) * BLOCK]))
    if control is not None:
        groups = under_control(groups, float(query @ one(control[0, group, 0], -1)) * scale)
    cached = len(groups)
    logits, values = [], []
    for n in range(start, number + 1):
        at = base + n - start + (n - start) // BLOCK
        b = n // BLOCK
        if b == number // BLOCK:
            logits.append(float(query @ one(k[0, group, n], at)) * scale)
            values.append(v[0, group, n])
        elif n % BLOCK == 0:
            rows = [float(query @ one(k[0, group, n + c], at + c)) * scale for c in range(BLOCK)]
            lead = float(query @ one(marks[0, group, b], at + BLOCK)) * scale
            groups.append((lead, rows, v[0, group, n : n + BLOCK]))
    return mixed(groups, logits, values, cached, args.get("cutoff", 0.0), chosen)


def mixed(groups, logits, values, cached, cutoff, chosen):
    """One softmax over rows and groups; without the first `cached` groups where their weight is below the cut-off."""
    logits = logits + [lead for lead, _, _ in groups]
    values = values + [(torch.tensor(rows).softmax(0)[:, None] * its).sum(0) for _, rows, its in groups]
    weight = torch.tensor(logits).softmax(0)
    far = weight[len(logits) - len(groups) :][:cached]
    if float(far.sum()) < cutoff:
        far[:], chosen = 0.0, []
    return (weight[:, None] * torch.stack(values)).sum(0), chosen


def under_control(groups, gate):
    """Section 4.4: blocks among themselves, all of them by the token that stands before all."""
    among = torch.tensor([lead for lead, _, _ in groups] or [0.0]).logsumexp(0)
    return [(float(lead - among + gate), rows, its) for lead, rows, its in groups]


def own(score, block):
    return score[block]


@pytest.mark.parametrize("length", [7, 26])
@pytest.mark.parametrize(
    "args",
    [
        {"rows": 12, "chunk": 6},
        {"rows": 6, "chunk": 3, "blocks": 4},
        {"rows": 15, "chunk": 6, "blocks": 3},
        {"rows": 11, "chunk": 6},
    ],
)
def test_rows_are_attended_by_the_papers_rules(args, length):
    """A slot, a group or a tie that differs makes distances that training never saw."""
    dice = torch.Generator().manual_seed(0)
    q = torch.randn(1, HEADS, length, DIM, generator=dice) * 2
    k, v = (torch.randn(1, GROUPS, length, DIM, generator=dice) for _ in range(2))
    marks = torch.randn(1, GROUPS, length // BLOCK, DIM, generator=dice)
    method = make_method("landmark", args)
    memory = remembering(CONFIG)
    method.write(memory, k, v)
    method.inserts(CONFIG).write(memory, marks, feed(torch.arange(length // BLOCK)[None]))
    call = Call(None, torch.zeros(1, dtype=torch.long), "decode", 0.5, length, length)
    ledger = Ledger()
    out = method.attend(q, memory, call, ledger)
    read = 0
    for number in range(length):
        picked = {g: set() for g in range(GROUPS)}
        for head in range(HEADS):
            want, chosen = by_the_paper(q, k, v, marks, args, number, head, own)
            torch.testing.assert_close(out[0, head, number], want, atol=1e-5, rtol=1e-4)
            picked[head * GROUPS // HEADS] |= set(chosen)
        read += sum(len(p) * BLOCK + number % args["chunk"] + 1 for p in picked.values())
    assert float(ledger.sums()[0, 1, 2]) == read


@pytest.mark.parametrize("cutoff", [0.0, 0.3])
def test_the_control_token_weighs_all_blocks_before_the_chunk(cutoff):
    """Blocks that compete with the chunk one by one, or a cut that scales up what is left, are not what was trained."""
    dice, length, args = torch.Generator().manual_seed(0), 26, {"rows": 12, "chunk": 6, "cutoff": cutoff}
    q = torch.randn(1, HEADS, length, DIM, generator=dice) * 2
    k, v = (torch.randn(1, GROUPS, length, DIM, generator=dice) for _ in range(2))
    marks, control = (torch.randn(1, GROUPS, n, DIM, generator=dice) for n in (length // BLOCK, 1))
    config = SimpleNamespace(lacuna_landmark={**CONFIG.lacuna_landmark, "gated": True})
    method = make_method("landmark", args)
    memory = remembering(config)
    method.write(memory, k, v)
    numbers = torch.tensor([[-2, *range(length // BLOCK)]])
    method.inserts(config).write(memory, torch.cat([control, marks], 2), feed(numbers))
    ledger = Ledger()
    call = Call(None, torch.zeros(1, dtype=torch.long), "decode", 0.5, length, length)
    out = method.attend(q, memory, call, ledger)
    cut = 0
    for number in range(length):
        for head in range(HEADS):
            want, chosen = by_the_paper(q, k, v, marks, args, number, head, own, control)
            torch.testing.assert_close(out[0, head, number], want, atol=1e-5, rtol=1e-4)
            cut += number >= args["chunk"] and not chosen
    assert (cut > 0) == (cutoff > 0)


@torch.no_grad()
def test_a_model_with_a_control_token_reads_as_it_was_trained():
    """The token at another place, or missing in a padded text, would shift all that the gate was trained on."""
    model, ids = make_model(), tokens(1, 22)
    said = model.config.lacuna_landmark | {"control": 1, "gated": True}
    model.config.lacuna_landmark, block = said, said["block"]
    kind = Landmarks(said["token"], said["control"], block, controlled=1.0)
    rows = kind.insert(Batch(*(ids[:, :20].numpy(),) * 3), np.random.default_rng(0))
    marks, gated = (torch.from_numpy(part) for part in (rows.landmarks, rows.controlled))
    with attending(model, WithLandmarks().attend):
        logits = model(torch.from_numpy(rows.ids), use_cache=False, landmarks=marks, controlled=gated).logits
    text = ~marks
    text[:, 0] = False
    pad = torch.nn.functional.pad
    both = torch.cat([pad(ids[:, :20], (2, 0)), ids], 0)
    mask = torch.ones_like(both)
    mask[0, :2] = 0
    with bind(model, make_method("landmark", {"keep": 1, "chunk": block})):  # then no block is in a row's own chunk
        found = model(both, attention_mask=mask).logits
        cache = model(both[:, :7], attention_mask=mask[:, :7])
        later = model(both[:, 7:], attention_mask=mask, past_key_values=cache.past_key_values).logits
    torch.testing.assert_close(found[0, 2:], logits[text], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(found[1, :20], logits[text], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(later, found[:, 7:], atol=1e-4, rtol=1e-3)


def test_heads_choose_alike_for_a_row():
    """`choose: row` must give all heads of a row the same blocks, those with the largest share of any head."""
    model, ids = make_model(), tokens(1, 40)
    rows = {}
    for choose in ("row_and_head", "row"):
        _, ledger = run_rows(
            model, make_method("landmark", {"rows": 8, "chunk": 4, "choose": choose}), ids, {}, 20, True
        )
        rows[choose] = summary([ledger.sums()])["decode"]["rows_attended_mean"]
    inside = sum(n % 4 + 1 for n in range(20, 40)) / 20
    assert rows["row"] == pytest.approx(inside + 4)
    assert rows["row_and_head"] > rows["row"]


def test_equal_landmarks_choose_the_oldest():
    """In the first layer all landmarks are alike: without a rule, rounding would choose."""
    length = 24
    q, k = torch.randn(1, HEADS, length, DIM), torch.randn(1, GROUPS, length, DIM)
    memory = remembering(CONFIG)
    method = make_method("landmark", {"rows": 6, "chunk": 3})
    method.write(memory, k, k)
    method.inserts(CONFIG).write(memory, torch.zeros(1, GROUPS, 8, DIM), feed(torch.arange(8)[None]))
    call = Call(None, torch.zeros(1, dtype=torch.long), "decode", 0.5, length, 1)
    changed = k.clone()
    changed[:, :, :3] += 1
    first = method.attend(q[:, :, -1:], memory, call, Ledger())
    memory.values.view[:] = changed
    assert not torch.allclose(method.attend(q[:, :, -1:], memory, call, Ledger()), first)


def test_old_blocks_are_dropped_first():
    """A cache of `blocks` blocks that grows with the text is none; what it holds must not change what is computed."""
    from lacuna.models.bind import bind

    model, ids = make_model(), tokens(1, 60)
    held = {}
    for blocks in (3, 5):
        method = make_method("landmark", {"rows": 16, "chunk": 8, "blocks": blocks})
        with bind(model, method) as binding:
            cache = binding.cache()
            for column in ids.split(1, 1):
                model(column, past_key_values=cache, use_cache=True)
                held.setdefault(blocks, []).append(cache.layers[0].memory.keys.view.shape[2])
    assert max(held[3][-20:]) == 3 * 4 + 8 - 1
    assert max(held[5][-20:]) == 5 * 4 + 8 - 1


def blocks_read(args, length=40):
    """Whole blocks that each row from the 21st on reads beside its chunk of 4, in the first and in the last layer."""
    model, ids = make_model(num_key_value_heads=4), tokens(1, length)  # no groups: heads read what they choose
    _, ledger = run_rows(model, make_method("landmark", {"chunk": 4, **args}), ids, {}, 20, False)
    counted = summary([ledger.sums()])
    assert counted["over_budget"] == {"rows_attended": 0, "rows_held": 0, "bytes": 0}
    inside = sum(n % 4 + 1 for n in range(20, length)) / (length - 20)
    return [(layer["rows_attended_mean"] - inside) / 4 for layer in counted["layers"]]


ROW = 4 * 2 * WIDE * 4  # a key and a value of the four heads, in bytes


@pytest.mark.parametrize(
    ("args", "blocks"),
    [
        ({"rows": [8, 15]}, lambda _: (1, 2)),
        ({"keep": 0.5}, lambda end: (end // 2 - 4) // 4),
        ({"keep": 0.01}, lambda _: 1),
        ({"bytes": 16 * ROW}, lambda end: (16 - 4 - end / 4 / 2) // 4),
    ],
)
def test_budgets_are_whole_blocks_beside_the_chunk(args, blocks):
    """A share or bytes would buy other blocks than the same number of rows, or landmarks and the chunk would be free."""
    ends = [n // 4 * 4 + 4 for n in range(20, 40)]
    each = torch.tensor([blocks(end) for end in ends], dtype=torch.float64)
    assert blocks_read(args) == pytest.approx((each.mean(0) if each.dim() > 1 else each.mean().repeat(2)).tolist())


@pytest.mark.parametrize(
    ("config", "args", "words"),
    [
        (SimpleNamespace(), {}, "was not trained with landmarks"),
        (CONFIG, {"rows": 8, "chunk": 6}, "rows = 8 is less than the chunk of 6 and one of the model's blocks of 3"),
        (CONFIG, {"chunk": 250}, "chunk 250 is no multiple of the model's block 3: take 249"),
        (CONFIG, {"chunk": 6, "cutoff": 0.1}, "trained without a control token: leave out cutoff"),
    ],
)
def test_other_models_are_refused(config, args, words):
    """A model without landmarks would be given a token that it never saw, and its results taken for the method's."""
    with pytest.raises(ValueError, match=words):
        make_method("landmark", args).inserts(config)
