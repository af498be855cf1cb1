"""Decision regions in two-dimensional sections of image space."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.attacks.norms import rows
from lit_adv.attacks.randomness import Draws, row_seeds
from lit_adv.explain.boundary import Boundary, unit
from lit_adv.explain.boundary_curvature import orthogonal_directions
from lit_adv.explain.cam import _check


class Plane(NamedTuple):
    """Two orthonormal directions for each image.

    Attributes:
        first: ``(B, C, H, W)``, u1.
        second: ``(B, C, H, W)``, u2.
    """

    first: Tensor
    second: Tensor


def adversarial_plane(boundary: Boundary, *, seed: int = 0) -> Plane:
    """u1 = r / ||r||, to the nearest boundary point, and u2 random at a right angle to it.

    Args:
        boundary: From `boundary_distance`; the image lies at (-||r||, 0) of a section through the boundary point.
        seed: Of u2, which depends on it and on the image alone.
    """
    first = unit(boundary.points - boundary.images)
    draws = Draws(row_seeds(boundary.images, seed))
    return Plane(first, orthogonal_directions(draws, first.shape[1:], first.dtype, first))


def random_plane(images: Tensor, *, seed: int = 0) -> Plane:
    """Two random orthonormal directions, which depend on the seed and on the image ``(B, C, H, W)`` alone."""
    # other numbers than those of u2 in the adversarial plane
    draws = Draws(row_seeds(images, seed), draw=16)
    first = orthogonal_directions(draws, images.shape[1:], images.dtype)
    return Plane(first, orthogonal_directions(draws, images.shape[1:], images.dtype, first))


def decision_section(
    model: nn.Module, centers: Tensor, plane: Plane, radii: Tensor, *, cells: int = 61, chunk_size: int = 256
) -> Tensor:
    """The class predicted at ``center + s u1 + t u2`` for s and t on a grid.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        centers: ``(B, C, H, W)``, such as points of a `Boundary`. Points of the section may lie outside [0, 1].
        plane: u1 and u2.
        radii: ``(B,)``, the largest ``|s|`` and ``|t|``.
        cells: Odd number of grid points along a side; the middle one is the center.
        chunk_size: Points at once.

    Returns:
        ``(B, cells, cells)`` int64; rows are t from ``radius`` down to ``-radius``, columns are s upwards: as it is
        drawn.

    Raises:
        ValueError: An argument is out of range, or shapes do not fit.
    """
    owner = "decision_section"
    _check(owner, centers, None)
    check_section(owner, cells, chunk_size)
    if any(part.shape != centers.shape for part in plane) or radii.shape != centers.shape[:1]:
        raise ValueError(
            f"{owner}: plane and radii must fit centers of shape {tuple(centers.shape)}, got "
            f"{tuple(plane.first.shape)}, {tuple(plane.second.shape)} and {tuple(radii.shape)}"
        )
    steps = torch.linspace(-1, 1, cells, dtype=torch.float64, device=centers.device)
    # linspace may miss 0 by a bit
    steps[cells // 2] = 0
    found = []
    with _untouched(model) as inner, torch.no_grad():
        centers, first, second = (part.detach().clone() for part in (centers, *plane))
        for places in torch.arange(len(centers) * cells * cells, device=centers.device).split(chunk_size):
            row, place = places // (cells * cells), places % (cells * cells)
            s = (steps[place % cells] * radii[row]).to(centers.dtype)
            t = (-steps[place // cells] * radii[row]).to(centers.dtype)
            found.append(_call(inner, centers[row] + rows(s) * first[row] + rows(t) * second[row]).argmax(1))
    if not found:
        return torch.zeros(0, cells, cells, dtype=torch.int64, device=centers.device)
    return torch.cat(found).view(len(centers), cells, cells)


def bend_of_boundary(sections: Tensor, classes: Tensor, *, window: float = 0.5) -> Tensor:
    """How far from a straight line the border of a class runs near the middle of a section, in cells.

    The border is where neighbouring cells are of the class and not; the line is the one of least squared distances.
    A straight border gives less than one cell, which is what the grid can tell; one that forks gives much.

    Args:
        sections: ``(B, n, n)`` from `decision_section`.
        classes: ``(B,)`` int64, the classes whose border is meant.
        window: Share of the section's side that is looked at, around the middle.

    Returns:
        ``(B,)`` float64, the largest distance from the line in cells; NaN where there is no border in the window.
    """
    if not 0 < window <= 1:
        raise ValueError(f"bend_of_boundary: window must be in (0, 1], got {window:g}")
    cells = sections.shape[-1]
    half = window * (cells - 1) / 2
    found = []
    for section, label in zip(sections.cpu(), classes.cpu(), strict=True):
        inside = section == label
        across = (inside[:, 1:] != inside[:, :-1]).nonzero().double() + torch.tensor([0.0, 0.5], dtype=torch.float64)
        down = (inside[1:] != inside[:-1]).nonzero().double() + torch.tensor([0.5, 0.0], dtype=torch.float64)
        points = torch.cat([across, down]) - (cells - 1) / 2
        points = points[(points.abs() <= half).all(1)]
        if len(points) < 2:
            found.append(math.nan)
            continue
        points = points - points.mean(0)
        normal = torch.linalg.eigh(points.T @ points)[1][:, 0]
        found.append(float((points @ normal).abs().max()))
    return torch.tensor(found, dtype=torch.float64)


def check_section(owner: str, cells: int, chunk_size: int) -> None:
    """Raises ValueError for what `decision_section` can do at no point."""
    if cells < 3 or cells % 2 == 0:
        raise ValueError(f"{owner}: cells must be odd and at least 3, so that one is the middle, got {cells}")
    if chunk_size < 1:
        raise ValueError(f"{owner}: chunk_size must be at least 1, got {chunk_size}")
