"""Ranks, spectra and overlaps of calibrations, by hand and by their definition."""

import pytest
import torch
from safetensors.torch import save_file
from test_thresholds import corpus, session  # noqa: F401

from lacuna.harness.tasks.basis_similarity import BasisSimilarity, compare
from lacuna.harness.tasks.spectra import Spectra, components, rank


def turned(dim, seed):
    return torch.linalg.qr(torch.randn(2, dim, dim, generator=torch.Generator().manual_seed(seed)).double()).Q


def written(path, basis, shares):
    tensors = {"basis": basis, "variance": shares, "mean": torch.zeros_like(shares)}
    save_file({f"layer.0.{name}": part.float().contiguous() for name, part in tensors.items()}, path)
    return path


def test_rank_is_the_first_that_reaches_the_share():
    """A rank would be one too high or too low, in every figure."""
    shares = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.91, 0.05, 0.03, 0.01], [0.25, 0.25, 0.25, 0.25]]).double()
    assert rank(shares, 0.9) == [3, 1, 4]
    assert rank(shares, 1.0) == [4, 4, 4]
    assert rank(torch.full((1, 3), 0.3333), 1.0) == [3]


def test_a_spectrum_names_its_first_and_last_component():
    """The slope of a spectrum would begin or end somewhere else than at the head's dimension."""
    assert components(5).tolist() == [1, 2, 3, 4, 5]
    some = components(128).tolist()
    assert (some[:3], some[-1]) == ([1, 2, 3], 128)
    assert len(some) <= 24


def test_spectra_are_those_of_the_calibration(model, tmp_path):
    """Ranks of one head would be shown as another's."""
    shares = torch.tensor([[0.6, 0.3, 0.06, 0.04], [0.4, 0.3, 0.2, 0.1]])
    path = written(tmp_path / "a.safetensors", turned(4, 0), shares)
    with session(model, {"pca": path}) as found:
        outcome = Spectra(variance=0.85).run(found)
    (sample,) = outcome.samples
    assert (sample["rank"], sample["component"]) == ([2, 3], [1, 2, 3, 4])
    assert sample["mean"] == pytest.approx([0.5, 0.3, 0.13, 0.07], rel=1e-3)
    assert (sample["least"], sample["most"]) == (
        pytest.approx([0.4, 0.3, 0.06, 0.04], rel=1e-3),
        pytest.approx([0.6, 0.3, 0.2, 0.1], rel=1e-3),
    )
    assert outcome.metrics == {"rank_mean": 2.5, "rank_min": 2.0, "rank_max": 3.0}


def test_overlap_is_of_spaces_not_of_components():
    """A PCA may turn signs and swap equal components: two runs on one corpus would look different."""
    basis, d = turned(6, 1), 3
    mixed = basis.clone()
    mixed[..., :d] = mixed[..., :d].flip(-1) * torch.tensor([1.0, -1.0, -1.0])
    overlap, held = compare(mixed, basis, torch.full((2, 6), 1 / 6).double(), d)
    torch.testing.assert_close(overlap, torch.ones(2).double())
    torch.testing.assert_close(held, torch.ones(2).double())


def test_overlap_by_hand():
    """Of two planes that share one axis of four, half is common; the basis from elsewhere holds what lies in it."""
    axes = torch.eye(4).double()[None]
    other = axes[..., [0, 2, 1, 3]]
    overlap, held = compare(axes, other, torch.tensor([[0.6, 0.2, 0.15, 0.05]]).double(), 2)
    assert overlap.tolist() == pytest.approx([0.5])
    assert held.tolist() == pytest.approx([(0.6 + 0.15) / (0.6 + 0.2)])


def test_variance_held_is_that_of_the_covariance():
    """What a foreign basis costs would be read off another matrix than that of the keys it is used on."""
    mine, other, shares = turned(6, 1), turned(6, 2), torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.04, 0.01]] * 2).double()
    covariance = other @ torch.diag_embed(shares) @ other.transpose(1, 2)
    ours, own = mine[..., :2], other[..., :2]
    want = [torch.trace(b.T @ c @ b) for b, c in zip(ours, covariance, strict=True)]
    best = [torch.trace(b.T @ c @ b) for b, c in zip(own, covariance, strict=True)]
    _, held = compare(mine, other, shares, 2)
    assert held.tolist() == pytest.approx([float(a / b) for a, b in zip(want, best, strict=True)])
    assert (held <= 1).all()


def test_spaces_that_have_nothing_in_common_overlap_by_chance():
    """Half of an overlap would be taken for likeness where chance alone gives it."""
    found = [compare(turned(16, s), turned(16, s + 100), torch.full((2, 16), 1 / 16).double(), 4)[0] for s in range(60)]
    assert float(torch.cat(found).mean()) == pytest.approx(4 / 16, abs=0.02)


def test_similarity_reads_two_calibrations(model, tmp_path):
    """A corpus would be compared with itself."""
    shares = torch.tensor([[0.6, 0.2, 0.15, 0.05]] * 2)
    paths = {
        name: written(tmp_path / f"{name}.safetensors", torch.eye(4)[:, order].expand(2, 4, 4), shares)
        for name, order in (("pca", [0, 1, 2, 3]), ("other", [0, 2, 1, 3]))
    }
    with session(model, paths) as found:
        outcome = BasisSimilarity(d=2).run(found)
    assert outcome.samples == [
        {"layer": 0, "overlap": pytest.approx([0.5, 0.5]), "variance_held": pytest.approx([0.9375] * 2)}
    ]
    assert outcome.metrics["overlap_by_chance"] == 0.5
