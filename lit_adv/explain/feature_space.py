"""Where images lie among others in feature space: neighbours, principal components and t-SNE."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Components(NamedTuple):
    """Principal components.

    Attributes:
        mean: ``(D,)``.
        axes: ``(k, D)``, orthonormal; of each the entry of largest absolute value is positive.
        variances: ``(k,)``, along them, the largest first, over n - 1.
        shares: ``(k,)``, of the total variance; 0 where there is none.
        scores: ``(N, k)``, places of the points along them.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    shares: Tensor
    scores: Tensor


def nearest_neighbors(
    queries: Tensor, bank: Tensor, k: int = 5, *, exclude: Tensor | None = None, chunk_size: int = 256
) -> tuple[Tensor, Tensor]:
    """The k nearest points of a bank, by Euclidean distance.

    Args:
        queries: ``(Q, D)`` features.
        bank: ``(N, D)`` features.
        k: How many.
        exclude: ``(Q,)`` int64, place in the bank that each query may not get, such as its own; -1 for none.
        chunk_size: Queries at once, which bounds the memory.

    Returns:
        Places ``(Q, k)`` int64 and distances ``(Q, k)`` float64, the nearest first; of equally near ones the earlier.

    Raises:
        ValueError: Shapes do not fit, or there are fewer than k points.
    """
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"nearest_neighbors: queries and bank must be (Q, D) and (N, D), got {tuple(queries.shape)} and "
            f"{tuple(bank.shape)}"
        )
    allowed = len(bank) - (exclude is not None)
    if not 1 <= k <= allowed:
        raise ValueError(f"nearest_neighbors: k must be in [1, {allowed}], the points of the bank, got {k}")
    if exclude is not None and exclude.shape != queries.shape[:1]:
        raise ValueError(f"nearest_neighbors: exclude must have shape ({len(queries)},), got {tuple(exclude.shape)}")
    queries, bank = queries.detach().double(), bank.detach().double()
    squares = bank.square().sum(1)
    places, distances = [], []
    for number, part in enumerate(queries.split(chunk_size)):
        apart = (part.square().sum(1)[:, None] + squares - 2 * part @ bank.T).clamp(min=0)
        if exclude is not None:
            own = exclude[number * chunk_size : number * chunk_size + len(part)].to(apart.device)
            rows = (own >= 0).nonzero()[:, 0]
            apart[rows, own[rows]] = torch.inf
        nearest = apart.argsort(dim=1, stable=True)[:, :k]
        places.append(nearest)
        # the difference of squares has lost half of the digits where points are close
        distances.append(torch.stack([(bank[column] - part).norm(dim=1) for column in nearest.T], 1))
    return torch.cat(places), torch.cat(distances)


def pca(points: Tensor, k: int | None = None) -> Components:
    """Principal components by singular values, in float64.

    Args:
        points: ``(N, D)``.
        k: How many; None takes all ``min(N, D)``.

    Raises:
        ValueError: There are fewer than two points or than k components.
    """
    _check_points("pca", points, 2)
    most = min(points.shape)
    k = most if k is None else k
    if not 1 <= k <= most:
        raise ValueError(f"pca: k must be in [1, {most}], the smaller side of the points, got {k}")
    points = points.detach().double()
    mean = points.mean(0)
    left, values, axes = torch.linalg.svd(points - mean, full_matrices=False)
    # a singular vector has no sign of its own
    sign = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    variances = values.square() / (len(points) - 1)
    total = variances.sum()
    shares = variances / torch.where(total > 0, total, 1.0)
    return Components(mean, (axes * sign)[:k], variances[:k], shares[:k], (left * values * sign.T)[:, :k])


def tsne(points: Tensor, *, perplexity: float | None = None, seed: int = 0) -> Tensor:
    """Two dimensions in which near points stay near (van der Maaten and Hinton 2008), scikit-learn's, from the PCA.

    Args:
        points: ``(N, D)``, at least 5 of them.
        perplexity: Below N; None takes ``min(30, (N - 1) / 3)``.
        seed: The same one gives the same picture.

    Returns:
        ``(N, 2)``; distances between far clusters mean nothing.

    Raises:
        ValueError: There are too few points, or they are not finite.
    """
    _check_points("tsne", points, 5)
    perplexity = min(30.0, (len(points) - 1) / 3) if perplexity is None else perplexity
    if not 0 < perplexity < len(points):
        raise ValueError(f"tsne: perplexity must be in (0, {len(points)}), the number of points, got {perplexity}")
    # slow to import
    from sklearn.manifold import TSNE

    numbers = points.detach().double().cpu().numpy()
    found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(numbers)
    return torch.from_numpy(found).double()


def _check_points(owner: str, points: Tensor, least: int) -> None:
    if points.ndim != 2 or len(points) < least:
        raise ValueError(f"{owner}: points must be (N, D) with N at least {least}, got {tuple(points.shape)}")
    if not bool(points.isfinite().all()):
        raise ValueError(f"{owner}: points must be finite, got NaN or infinity")
