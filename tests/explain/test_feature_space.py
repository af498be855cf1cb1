"""Neighbours, principal components and t-SNE against scikit-learn and what must hold of them."""

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from lit_adv.explain import nearest_neighbors, pca, tsne


def points(count=40, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator) * torch.arange(1, size + 1) + 3


@pytest.mark.parametrize("chunk_size", [1, 7, 256])
def test_neighbours_are_scikit_learns(chunk_size):
    bank, queries = points(), points(9, seed=1)
    places, distances = nearest_neighbors(queries, bank, 4, chunk_size=chunk_size)
    expected, there = NearestNeighbors(n_neighbors=4).fit(bank.double()).kneighbors(queries.double())
    assert places.tolist() == there.tolist()
    torch.testing.assert_close(distances, torch.from_numpy(expected))


def test_a_point_is_its_own_neighbour_unless_it_is_left_out():
    bank = points(30) * 1e4
    places, distances = nearest_neighbors(bank, bank, 1)
    assert places[:, 0].tolist() == list(range(30))
    assert distances.max() <= 1e-5
    own = torch.arange(30)
    own[3] = -1
    places, _ = nearest_neighbors(bank, bank, 29, exclude=own, chunk_size=8)
    assert all(row not in places[row] for row in range(30) if row != 3)
    assert places[3, 0] == 3
    # the earlier of two that are the same
    bank[5] = bank[2]
    assert nearest_neighbors(bank[5:6], bank, 2)[0].tolist() == [[2, 5]]


@pytest.mark.parametrize(("count", "size"), [(40, 6), (5, 9)])
def test_components_are_scikit_learns(count, size):
    x = points(count, size)
    found, reference = pca(x, 3), PCA(3).fit(x.double().numpy())
    sign = torch.from_numpy(reference.components_).mul(found.axes).sum(1).sign()
    torch.testing.assert_close(found.axes, torch.from_numpy(reference.components_) * sign[:, None])
    torch.testing.assert_close(found.variances, torch.from_numpy(reference.explained_variance_))
    torch.testing.assert_close(found.shares, torch.from_numpy(reference.explained_variance_ratio_))
    torch.testing.assert_close(found.scores, torch.from_numpy(reference.transform(x.double().numpy())) * sign)


def test_what_holds_of_all_components():
    x = points()
    found = pca(x)
    eye = torch.eye(6).double()
    torch.testing.assert_close(found.axes @ found.axes.T, eye)
    assert (found.variances.diff() <= 0).all()
    assert float(found.variances.sum()) == pytest.approx(float(x.double().var(0).sum()))
    assert float(found.shares.sum()) == pytest.approx(1)
    torch.testing.assert_close(torch.cov(found.scores.T), torch.diag(found.variances), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.scores @ found.axes + found.mean, x.double())
    largest = found.axes.gather(1, found.axes.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    # the same points in another order have the same axes
    torch.testing.assert_close(pca(x.flip(0)).axes, found.axes)
    assert pca(torch.ones(4, 3)).shares.tolist() == [0, 0, 0]


def test_tsne_keeps_clusters_apart_and_is_the_same_each_time():
    x = torch.cat([points(20), points(20) + 200])
    found = tsne(x, seed=1)
    assert torch.equal(found, tsne(x, seed=1))
    places, _ = nearest_neighbors(found, found, 5, exclude=torch.arange(40))
    assert ((places < 20) == (torch.arange(40) < 20)[:, None]).all()
    assert tsne(points(5)).shape == (5, 2)


def test_bad_input_is_named():
    x = points(6)
    for call, message in (
        (lambda: nearest_neighbors(x, x, 7), r"nearest_neighbors: k must be in \[1, 6\]"),
        (lambda: nearest_neighbors(x, x, 6, exclude=torch.arange(6)), r"k must be in \[1, 5\]"),
        (lambda: nearest_neighbors(x, x[:, :3], 1), "queries and bank must be"),
        (lambda: nearest_neighbors(x, x, 1, exclude=torch.arange(2)), r"exclude must have shape \(6,\)"),
        (lambda: pca(x, 7), r"pca: k must be in \[1, 6\]"),
        (lambda: pca(x[:1]), "pca: points must be .* at least 2"),
        (lambda: tsne(x[:4]), "tsne: points must be .* at least 5"),
        (lambda: tsne(x, perplexity=6), r"tsne: perplexity must be in \(0, 6\)"),
        (lambda: pca(x / 0), "pca: points must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
