"""A state under each kind of map, read and written by many rows at once: against sums written out in float64, and steps.

Shape legend: B batch, H query heads, G KV heads, T rows, D head dim, W width of a map.
"""

import pytest
import torch
from torch.nn.functional import gelu

from lacuna.models import residual_state
from lacuna.models.feature_map import Trained, load_map
from lacuna.models.memory import Memory, Site
from lacuna.models.residual_state import Dropped, Share, State, marked

SITE = Site(layer=0, layers=1, kv_heads=(0,), kv_heads_real=1, head_dim=16, rotate=None)
ROWS, HEADS = 150, 2  # more than two chunks
WIDTHS = {"taylor": 5, "elu": None, "favor": 24, "elu_trained": 7, "hedgehog": 6, "less": 8}


def plus(x):
    return torch.where(x > 0, x + 1, x.exp())


def affine(x, w, side):
    return x @ w[f"{side}.matrix"] + w[f"{side}.shift"]


def network(x, w, side):
    return gelu(gelu(x @ w[f"{side}.inner"]) @ w[f"{side}.outer"]).abs()


def by_hand(name, x, w, side):
    """Features of rows [N, D], with weights of one head; whatever their factor is, it is in them."""
    scale = w["scale"].exp() if side == "key" and "scale" in w else 1.0
    if name == "elu":
        return plus(x)
    if name == "elu_trained":
        return scale * plus(affine(x, w, side))
    if name == "less":
        return scale * network(x, w, side)
    if name == "favor":
        return (x @ w["directions"] - x.square().sum(-1, keepdim=True) / 2).exp() / w["directions"].shape[1] ** 0.5
    both = affine(x, w, side)
    return scale * torch.cat([both.exp(), (-both).exp()], -1)


def products(name, q, k, w):
    """What the map puts in place of exp(q . k), [T, K]."""
    if name == "taylor":
        s = (q @ w["projection"]) @ (k @ w["projection"]).T
        return 1 + s + s**2 / 2
    return by_hand(name, q, w, "query") @ by_hand(name, k, w, "key").T


def weights_of(phi):
    """Some for a head: what a map draws, or where its training would start, a little off."""
    if not isinstance(phi, Trained):
        return phi.weights(SITE)
    dice = torch.Generator().manual_seed(3)
    started = phi.start(1, SITE.head_dim, [torch.Generator().manual_seed(2)])
    return {name: part + 0.2 * torch.randn(part.shape, generator=dice) for name, part in started.items()}


def drawn(device):
    """Queries, what leaves, and what exact attention found; every seventh query row lets none leave."""
    dice = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(1, *shape, generator=dice).to(device)

    there = (torch.arange(ROWS, device=device) % 7 != 0).expand(1, 1, -1)
    gone = Dropped(normal(1, ROWS, SITE.head_dim) / 2, normal(1, ROWS, SITE.head_dim), there)
    exact = Share(normal(HEADS, ROWS, SITE.head_dim), normal(HEADS, ROWS) + 2)
    return normal(HEADS, ROWS, SITE.head_dim) / 2, gone, exact


def state_of(phi, weights, like):
    memory = Memory(SITE, marked({name: part.to(like.device) for name, part in weights.items()}))
    state = State(memory, phi, centred=False)
    state.begin(like)
    return state


def unscaled(state):
    """Its sums of features times values, and of features, [F, D] and [F]."""
    sums, norm, scale = (state.memory.extra[f"residual.{name}"].double().cpu() for name in ("sums", "norm", "scale"))
    return sums[0, 0] * scale.exp(), norm[0, 0] * scale[0, 0].exp()


@pytest.mark.parametrize("twin", ["eager", "fused"])
@pytest.mark.parametrize("name", WIDTHS)
def test_chunks_are_the_sums_and_the_steps(name, twin, device, monkeypatch):
    """Broken: under some map many rows at once hear other sums than those of what has left, or leave another state."""
    phi = load_map(name, WIDTHS[name], 0)
    weights, (q, gone, exact) = weights_of(phi), drawn(device)
    at_once, stepwise = (state_of(phi, weights, gone.keys) for _ in range(2))
    monkeypatch.setattr(residual_state, "LINEAR_PREFILL", getattr(residual_state.LINEAR_PREFILL, twin))
    found = at_once.pass_by(q, gone, exact).double().cpu()

    w = {n: part[0].double() for n, part in weights.items()}
    k, v, there = (part[0, 0].cpu() for part in gone)
    for head in range(HEADS):
        weight = products(name, q[0, head].cpu().double(), k.double(), w).tril() * there
        own = exact.log[0, head].cpu().double().exp()[:, None]
        joined = own * exact.out[0, head].cpu().double() + weight @ v.double()
        torch.testing.assert_close(found[0, head], joined / (own + weight.sum(-1, keepdim=True)), atol=1e-4, rtol=1e-4)
    if name != "taylor":
        entered = by_hand(name, k.double(), w, "key")[there]
        for mine, want in zip(unscaled(at_once), (entered.T @ v.double()[there], entered.sum(0)), strict=True):
            torch.testing.assert_close(mine, want, atol=1e-3, rtol=1e-4)

    for t in range(ROWS):
        row = slice(t, t + 1)
        stepwise.step(q[:, :, row], gone.rows(row), Share(exact.out[:, :, row], exact.log[:, :, row]))
    for mine, want in zip(unscaled(at_once), unscaled(stepwise), strict=True):
        torch.testing.assert_close(mine, want, atol=1e-3, rtol=1e-4)
