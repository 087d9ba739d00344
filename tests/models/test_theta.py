"""Thresholds: Top-Theta and Loki-Theta against definitions by hand, one row and one head at a time in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest_models import DIM, make_method, make_model, run_rows, tokens
from safetensors.torch import load_file, save_file

from lacuna.models import threshold
from lacuna.models.call import Call
from lacuna.models.ledger import Ledger, summary
from lacuna.models.memory import Memory, Site

HEADS, GROUPS = 4, 2
VARIANTS = [
    {},
    {"sdc": "exact"},
    {"sdc": "exact", "vmc": "mean"},
    {"sdc": "exp_threshold", "vmc": "mean", "sdc_scale": 0.5},
    {"sdc": "offline", "vmc": "mean", "sdc_scale": 2.0},
    {"placement": "post"},
    {"placement": "post", "vmc": "mean"},
]


def name(args):
    return "-".join(map(str, args.values())) or "plain"


def artifact(folder, thetas, heads=HEADS, mass=0.4, lengths=(5, 60)):
    """One threshold a head for every signal and length, or a value for all; masses likewise."""
    path = folder / "thetas.safetensors"
    thetas = torch.as_tensor(thetas).expand(heads)[:, None].repeat(1, len(lengths))
    tensors = {f"layer.{i}.{s}": thetas.clone() for i in range(2) for s in ("pre", "post", "lowrank")}
    tensors |= {f"layer.{i}.mass": torch.full_like(thetas, mass) for i in range(2)}
    save_file(tensors | {f"layer.{i}.lengths": torch.tensor(lengths) for i in range(2)}, path)
    return {"thresholds": path}


def draw(rows=21, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, HEADS, rows, DIM, generator=generator)
    k, v = (torch.randn(batch, GROUPS, rows, DIM, generator=generator) for _ in range(2))
    return q, k, v


def attended(method, q, k, v, artifacts, rows, first=None, phase="decode"):
    """The last `rows` rows at once, after the others were written one by one; and ledger and memory."""
    place = Site(0, 1, tuple(range(GROUPS)), GROUPS, DIM, None, artifacts)
    memory = Memory(place, {**method.constants(place), **method.tables(place)})
    memory.first = torch.zeros(q.shape[0], dtype=torch.long) if first is None else first
    ledger, before = Ledger(), q.shape[2] - rows
    for part in [slice(i, i + 1) for i in range(before)] + [slice(before, before + rows)]:
        method.write(memory, k[:, :, part], v[:, :, part])
    numbers = torch.arange(q.shape[2])
    seen = (numbers <= numbers[before:, None]) & (numbers >= memory.first[:, None, None])
    call = Call(seen, memory.first, phase, DIM**-0.5, q.shape[2], rows)
    out = method.attend(q[:, :, before:], memory, call, ledger)
    return out, ledger, memory


def by_hand(q, k, v, theta, budget, placement="pre", sdc="none", sdc_scale=1.0, vmc="none", mass=0.4):
    """One row of one head; returns its output and the rows kept."""
    x = k.double() @ q.double() / math.sqrt(DIM)
    signal = x.softmax(0) if placement == "post" else x
    kept = (signal > theta) if len(x) > budget else torch.ones(len(x), dtype=torch.bool)
    if not kept.any():
        kept = signal == signal.max()
    e = (x - x.max()).exp()
    gone = ~kept
    missing = {"none": 0.0, "exact": e[gone].sum(), "offline": mass * bool(gone.any()),
               "exp_threshold": gone.sum() * min(1.0, math.exp(theta - x.max()))}[sdc]  # fmt: skip
    missing = e[gone].sum() if placement == "post" else sdc_scale * missing
    w = e * kept / (e[kept].sum() + missing)
    mean = (1 - w.sum()) * v.double().mean(0) if vmc == "mean" else 0
    return w @ v.double() + mean, kept


@pytest.mark.parametrize("args", VARIANTS, ids=name)
@pytest.mark.parametrize("theta", [0.05, 9.0])
def test_every_variant_by_hand(args, theta, tmp_path):
    """Placement, compensations, empty rows (a threshold of 9 is exceeded by nothing) and short rows as documented."""
    q, k, v = draw()
    thetas = theta + torch.arange(HEADS) * 0.01
    out, ledger, _ = attended(make_method("top_theta", {"rows": 6, **args}), q, k, v, artifact(tmp_path, thetas), 21)
    read = 0
    for b in range(2):
        for row in range(21):
            sets = []
            for h in range(HEADS):
                past = slice(0, row + 1)
                want, kept = by_hand(q[b, h, row], k[b, h // 2, past], v[b, h // 2, past], float(thetas[h]), 6, **args)
                torch.testing.assert_close(out[b, h, row].double(), want, atol=1e-5, rtol=1e-4)
                sets.append(kept)
            read += int((sets[0] | sets[1]).sum() + (sets[2] | sets[3]).sum())
    assert float(ledger.sums()[0, 1, 2]) == read


@pytest.mark.parametrize("args", VARIANTS, ids=name)
def test_decode_row_equals_prefill_row(args, tmp_path):
    """Row L - 1 of a prompt and a decoded row of length L are the same question; compensations acted in one only."""
    q, k, v = draw()
    method, files = make_method("top_theta", {"rows": 6, **args}), artifact(tmp_path, 0.06)
    prompt, _, _ = attended(method, q, k, v, files, 21, phase="prefill")
    for length in (5, 7, 14, 21):
        row, _, _ = attended(method, *(x[:, :, :length] for x in (q, k, v)), files, 1)
        torch.testing.assert_close(row, prompt[:, :, length - 1 : length], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loki", [False, True])
def test_model_rows_at_once_equal_steps_with_compensation(loki, basis, model):
    """The running mean of V is a sum over time: fed at once it must be what it is step by step, prefill included."""
    args = {"rows": 4, "d": 0.5} if loki else {"rows": 4, "sdc": "exp_threshold", "vmc": "mean"}
    method, ids = make_method("loki_theta" if loki else "top_theta", args), tokens(2, 40)
    once, a = run_rows(model, method, ids, basis(), 17, True, "sparse")
    steps, b = run_rows(model, method, ids, basis(), 17, False, "sparse")
    torch.testing.assert_close(once, steps, atol=2e-5, rtol=1e-4)
    assert a.sums()[:, 1, 2].equal(b.sums()[:, 1, 2])


def test_asking_how_a_row_is_kept_changes_nothing():
    """A step that asks twice, or asks and then writes otherwise, would count a row's values twice in their mean."""
    parts = {"lead": torch.ones(2, 8, 4), "rest": torch.ones(2, 8, 4)}
    memory = SimpleNamespace(constants=parts, aux={"lead": None}, extra={"value_sum": torch.ones(1, 2, 1, 8)}, clock=1)
    landing = make_method("loki_theta", {"keep": 0.25, "d": 0.5}).landing(memory)
    assert memory.extra["value_sum"].equal(torch.ones(1, 2, 1, 8))
    assert landing.sums is memory.extra["value_sum"]


@pytest.mark.parametrize("args", VARIANTS, ids=name)
def test_padding_is_no_row(args, tmp_path):
    """Padding counted as dropped rows, or averaged into V, would make a text depend on its neighbours in the batch."""
    q, k, v = draw()
    method, files = make_method("top_theta", {"rows": 4, **args}), artifact(tmp_path, 0.06)
    padded, _, _ = attended(method, q, k, v, files, 10, torch.tensor([0, 7]))
    alone, _, _ = attended(method, *(x[1:, :, 7:] for x in (q, k, v)), files, 10)
    torch.testing.assert_close(padded[1:], alone, atol=1e-5, rtol=1e-4)


def test_sdc_acts_in_decode(tmp_path):
    """The first released code took the query's row count for the length: in decode its compensation did nothing."""
    q, k, v = draw()
    files = artifact(tmp_path, 0.05)
    plain = attended(make_method("top_theta", {"rows": 4}), q, k, v, files, 1)[0]
    for sdc in ("exact", "exp_threshold", "offline"):
        other = attended(make_method("top_theta", {"rows": 4, "sdc": sdc}), q, k, v, files, 1)[0]
        assert (other.norm(dim=-1) < plain.norm(dim=-1)).all(), sdc


def test_vmc_acts_in_decode(tmp_path):
    """With it the weights and the mean's share sum to one: constant values come out as they are."""
    q, k, _ = draw()
    v = torch.ones_like(k)
    for args in ({"sdc": "exact"}, {"placement": "post"}):
        given = {"rows": 4, "vmc": "mean", **args}
        out, _, _ = attended(make_method("top_theta", given), q, k, v, artifact(tmp_path, 0.1), 1)
        torch.testing.assert_close(out, torch.ones_like(out))


def test_empty_rows_keep_their_best_row(tmp_path):
    """The released code spread a row that nothing passes evenly over all columns, future ones included."""
    q, k, v = draw()
    out, ledger, _ = attended(
        make_method("top_theta", {"rows": 4, "heads": "kv"}), q, k, v, artifact(tmp_path, 99.0, 2), 1
    )
    best = (q[:, :, -1:].unflatten(1, (2, 2)) @ k[:, :, None].mT).amax(2)[:, :, 0].argmax(-1)
    want = v.gather(2, best[..., None, None].expand(-1, -1, 1, DIM)).repeat_interleave(2, 1)
    torch.testing.assert_close(out, want)
    assert float(ledger.sums()[0, 1, 2]) == 2 * GROUPS


@pytest.mark.parametrize("cap", ["best", "recent", "none"])
def test_rows_over_k(cap, tmp_path):
    """A cap bounds what is read: by the largest scores, or by the last ones as released."""
    q, k, v = draw()
    out, _, _ = attended(make_method("top_theta", {"rows": 4, "cap": cap}), q, k, v, artifact(tmp_path, -99.0), 1)
    scores = (q[:, :, -1:] @ k.repeat_interleave(2, 1).mT)[:, :, 0] * DIM**-0.5
    chosen = {"best": scores.topk(4).indices, "recent": torch.arange(17, 21).expand(2, 4, 4), "none": None}[cap]
    keep = torch.ones_like(scores, dtype=torch.bool)
    if chosen is not None:
        keep = torch.zeros_like(keep).scatter(-1, chosen, True)
    want = scores.masked_fill(~keep, -torch.inf).softmax(-1)[:, :, None] @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-4)


def test_lengths_between_and_beyond_the_calibrated():
    """Between two lengths the line or the nearest (of two equally near the shorter); outside them the outermost."""
    lengths, values = torch.tensor([2, 6, 8]), torch.tensor([[1.0, 5.0, 9.0]])
    assert threshold.fill(lengths, values, "linear").tolist() == [[1, 1, 2, 3, 4, 5, 7, 9]]
    assert threshold.fill(lengths, values, "nearest").tolist() == [[1, 1, 1, 1, 5, 5, 5, 9]]
    call = Call(None, torch.tensor([0, 5]), "decode", 1.0, 30, 2)
    assert threshold.look_up(torch.tensor([[3.0, 4.0, 5.0]]), call, 1).tolist() == [[[5, 5]], [[5, 5]]]


def test_a_budget_per_layer(model, tmp_path):
    """The published runs keep the first layers nearly dense; a k that reached every layer would be another method."""
    method = make_method("top_theta", {"keep": [1.0, 0.1]})
    _, ledger = run_rows(model, method, tokens(1, 40), artifact(tmp_path, 0.5), 17, False)
    densities = [layer["density"] for layer in summary([ledger.sums()])["layers"]]
    assert densities[0] == 1
    assert densities[1] < 1


def test_least_and_most_of_one_are_loki(basis, model):
    """Bounds that leave no room must give the k largest, whatever the thresholds say."""
    ids, files = tokens(2, 40), basis()
    args = {"keep": 0.25, "d": 0.5, "least": 1.0, "most": 1.0, "sdc": "none", "vmc": "none"}
    got, _ = run_rows(model, make_method("loki_theta", args), ids, files, 17, False)
    want, _ = run_rows(model, make_method("loki", {"keep": 0.25, "d": 0.5}), ids, files, 17, False)
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("theta", "rows"), [(99.0, 4), (-99.0, 12)])
def test_bounds_of_loki_theta(theta, rows, basis, tmp_path):
    """Thresholds that fit a text badly must neither starve a row nor make it dense."""
    q, k, v = draw()
    files = basis() | artifact(tmp_path, theta, GROUPS)
    method = make_method("loki_theta", {"rows": 8, "d": 0.5, "least": 0.5, "most": 1.5})
    _, ledger, _ = attended(method, q, k, v, files, 1)
    assert float(ledger.sums()[0, 1, 2]) == rows * 2 * GROUPS


def test_loki_theta_by_hand(basis, tmp_path):
    """Rows by low-rank scores, weights by exact ones, the dropped share by low-rank ones, which goes to the mean value."""
    q, k, v = draw(seed=4)
    files, theta, d = basis() | artifact(tmp_path, 0.1), 0.1, 6
    p = load_file(files["basis"])["layer.0.basis"].double()
    method = make_method("loki_theta", {"rows": 6, "d": d, "heads": "query", "least": 0.1, "most": 3.0})
    out, _, _ = attended(method, q, k, v, files, 1)
    for b in range(2):
        for h in range(HEADS):
            keys, query = k[b, h // 2].double() @ p[h // 2], q[b, h, -1].double() @ p[h // 2]
            low, exact = keys[:, :d] @ query[:d] / math.sqrt(DIM), keys @ query / math.sqrt(DIM)
            kept = low > theta
            assert 1 <= kept.sum() <= 18
            inside = low.softmax(0)[kept].sum()
            want = inside * exact[kept].softmax(0) @ v[b, h // 2, kept].double()
            want = want + (1 - inside) * v[b, h // 2].double().mean(0)
            torch.testing.assert_close(out[b, h, 0].double(), want, atol=1e-5, rtol=1e-4)


def test_bytes_of_top_theta(tmp_path):
    """Every key is read, but only the values above the threshold; one threshold and one mass a head, one sum of V."""
    q, k, v = draw()
    method = make_method("top_theta", {"rows": 6, "sdc": "offline", "vmc": "mean"})
    _, ledger, memory = attended(method, q, k, v, artifact(tmp_path, 0.06), 1)
    _, _, attended_rows, _, read, dense = ledger.sums()[0, 1].tolist()
    row = DIM * 4
    assert read == 2 * GROUPS * 21 * row + attended_rows * row + 2 * (2 * HEADS * 4 + GROUPS * row)
    assert dense == 2 * GROUPS * 21 * 2 * row
    assert memory.held_bytes == memory.dense_bytes + 2 * HEADS * 60 * 4 + 2 * GROUPS * row


def test_bytes_of_loki_theta(basis, tmp_path):
    """Leading components of every key, whole rows of those chosen, the basis, one threshold a set, one sum of V."""
    q, k, v = draw()
    files = basis() | artifact(tmp_path, 0.06, GROUPS)
    _, ledger, _ = attended(make_method("loki_theta", {"rows": 6, "d": 4}), q, k, v, files, 1)
    _, _, attended_rows, _, read, _ = ledger.sums()[0, 1].tolist()
    row, basis_bytes = DIM * 4, GROUPS * DIM * DIM * 4
    assert read == 2 * GROUPS * 21 * 4 * 4 + attended_rows * 2 * row + basis_bytes + 2 * GROUPS * (4 + row)


@pytest.mark.parametrize(
    ("method", "args", "words"),
    [
        ("top_theta", {"placement": "post", "sdc": "exact"}, "set sdc: none"),
        ("top_theta", {"vmc": "mean"}, "lacks no weight"),
        ("top_theta", {"sdc_scale": 2.0}, "sdc_scale at 1"),
        ("loki_theta", {"sdc": "none"}, "vmc: none"),
    ],
)
def test_arguments_that_do_not_go_together(method, args, words):
    """A setting that is ignored is an error."""
    with pytest.raises(ValueError, match=words):
        make_method(method, args)


def test_thresholds_of_something_else_are_refused(tmp_path, model):
    """Thresholds of other scores, or of another model's heads, would select garbage without a word."""
    files = artifact(tmp_path, 0.1)
    with pytest.raises(ValueError, match="argument `heads`"):
        run_rows(model, make_method("top_theta", {"rows": 4, "heads": "kv"}), tokens(1, 40), files, 17, False)
    with pytest.raises(ValueError, match="calibrate on this model"):
        run_rows(
            make_model("gpt_neox", num_attention_heads=8), make_method("top_theta", {}), tokens(1, 9), files, 5, False
        )
    save_file({"layer.0.lengths": torch.tensor([5]), "layer.0.post": torch.ones(4, 1)}, files["thresholds"])
    with pytest.raises(ValueError, match="calibrate on the scores"):
        run_rows(model, make_method("top_theta", {"rows": 4}), tokens(1, 40), files, 17, False)
