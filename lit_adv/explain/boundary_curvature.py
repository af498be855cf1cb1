"""How the decision boundary bends: in random directions, and in the one in which it bends most."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _untouched
from lit_adv.attacks.norms import rows
from lit_adv.attacks.randomness import Draws, row_seeds
from lit_adv.explain.boundary import Boundary, Network, Precision, check_precision, crossing, dot, length, unit


class Curvature(NamedTuple):
    """Normal curvatures at boundary points, in 1 / (pixel units of [0, 1]); NaN where there is no point.

    Positive where the region of the class bulges towards the rival, as a ball does towards what is around it.

    Attributes:
        steps: ``(B,)``, t, how far from the point the boundary was looked for.
        random: ``(B, n)``, finite sections in random directions; NaN where the boundary is not within 4 t.
        top: ``(B,)``, the finite section in the direction found by power iteration.
        top_quotient: ``(B,)``, the quotient ``v . (grad f(b + t v) - grad f(b - t v)) / (2 t |grad f(b)|)`` there.
        top_directions: ``(B, C, H, W)``, of length 1.
        settled: ``(B,)``, absolute cosine of the last two directions of the power iteration; 1 where it stands still.
    """

    steps: Tensor
    random: Tensor
    top: Tensor
    top_quotient: Tensor
    top_directions: Tensor
    settled: Tensor


def boundary_curvature(
    model: nn.Module,
    boundary: Boundary,
    *,
    directions: int = 10,
    reach: float = 0.25,
    iterations: int = 20,
    precision: Precision = "float64",
    seed: int = 0,
    chunk_size: int = 64,
) -> Curvature:
    """Curvature of the boundary between two classes by finite sections.

    Fawzi et al. 2018, "Empirical study of the topology and geometry of deep networks", section 4, take the Hessian's
    eigenvalues. Of a network of ReLUs it is 0 almost everywhere, and so differences over a finite t stand in its place.

    With b on the boundary, n the unit normal towards the rival and v a unit vector at a right angle to n, the boundary
    is at ``b + t v - h(t) n``, and ``kappa(v) = (h(t) + h(-t) - 2 h(0)) / t^2``. For ``f = |x|^2 - R^2`` it is + 1 / R.
    The power iteration takes difference quotients of the gradient over the same t, and so the direction of the largest
    ``|kappa|``.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        boundary: From `boundary_distance` on the same model.
        directions: How many random v.
        reach: t as a share of each image's distance.
        iterations: Of the power iteration.
        precision: As in `boundary_distance`; float32 sees no curvature below about 1e-6 ``|logits| / (slope t^2)``.
        seed: Of the directions, which depend on it and on the image alone.
        chunk_size: Images at once.

    Raises:
        ValueError: An argument is out of range.
    """
    owner = "boundary_curvature"
    check_curvature(owner, directions, reach, iterations, chunk_size)
    check_precision(owner, precision)
    count = len(boundary.images)
    kept = boundary.found.nonzero()[:, 0]
    parts = []
    with _untouched(model) as inner:
        network = Network(owner, inner, precision, boundary.images)
        for chosen in kept.split(chunk_size):
            if len(chosen):
                parts.append(_bent(network, boundary.take(chosen), directions, reach, iterations, seed))
    like = boundary.points.to(network.dtype)
    empty = (
        like.new_full((count,), math.nan),
        like.new_full((count, directions), math.nan),
        *(like.new_full((count,), math.nan) for _ in range(2)),
        torch.full_like(like, math.nan),
        like.new_full((count,), math.nan),
    )
    if not parts:
        return Curvature(*empty)
    joined = (torch.cat(column) for column in zip(*parts, strict=True))
    return Curvature(*(whole.index_copy(0, kept, part) for whole, part in zip(empty, joined, strict=True)))


def check_curvature(owner: str, directions: int, reach: float, iterations: int, chunk_size: int) -> None:
    """Raises ValueError for what `boundary_curvature` can do at no point."""
    for field, value in (("directions", directions), ("iterations", iterations), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{owner}: {field} must be at least 1, got {value}")
    if not 0 < reach < math.inf:
        raise ValueError(f"{owner}: reach must be above 0, a share of the distance, got {reach:g}")


def orthogonal_directions(draws: Draws, shape: torch.Size, dtype: torch.dtype, *against: Tensor) -> Tensor:
    """Random unit vectors ``(B, C, H, W)`` at right angles to the given orthonormal ones."""
    drawn = draws.normal(tuple(shape), torch.float64)
    # twice, since one pass leaves what rounding put there
    for _ in range(2):
        for other in against:
            drawn = drawn - rows(dot(drawn, other.double())) * other.double()
    return unit(drawn).to(dtype)


def _bent(
    network: Network, at: Boundary, directions: int, reach: float, iterations: int, seed: int
) -> tuple[Tensor, ...]:
    b, n = at.points.to(network.dtype), at.normals.to(network.dtype)
    slopes, t = at.slopes.to(network.dtype), reach * at.distances.to(network.dtype)
    draws = Draws(row_seeds(at.images, seed))

    def section(v: Tensor) -> Tensor:
        off = network.pair(b, at.classes, at.rivals) / slopes
        return (_depth(network, at, b + rows(t) * v, slopes, t) + _depth(network, at, b - rows(t) * v, slopes, t)) / (
            t.square()
        ) - 2 * off / t.square()

    def quotient(v: Tensor) -> Tensor:
        ahead = network.gradient(b + rows(t) * v, at.classes, at.rivals)
        behind = network.gradient(b - rows(t) * v, at.classes, at.rivals)
        found = (ahead - behind) / rows(2 * t * slopes)
        return found - rows(dot(found, n)) * n

    random = torch.stack([section(orthogonal_directions(draws, b.shape[1:], b.dtype, n)) for _ in range(directions)], 1)
    v = orthogonal_directions(draws, b.shape[1:], b.dtype, n)
    settled = torch.ones_like(t)
    for _ in range(iterations):
        bent = quotient(v)
        size = length(bent)
        # where the boundary is flat every direction is as good as this one; what is left is rounding
        flat = size * t <= 1e-12
        turned = torch.where(rows(flat), v, bent / rows(torch.where(flat, 1.0, size)))
        settled, v = dot(turned, v).abs(), turned
    return t, random, section(v), dot(v, quotient(v)), v, settled


def _depth(network: Network, at: Boundary, start: Tensor, slopes: Tensor, t: Tensor) -> Tensor:
    """``(B,)``: how far against the normal the boundary is from ``start``; NaN where not within 4 t."""
    n = at.normals.to(start.dtype)
    here = network.pair(start, at.classes, at.rivals)
    side = here.sign()

    def value(m: Tensor, chosen: Tensor) -> Tensor:
        point = start[chosen] - rows((side * m)[chosen]) * n[chosen]
        # without a unit, so that one tolerance serves all
        scale = -side[chosen] / (slopes * t)[chosen]
        return scale * network.pair(point, at.classes[chosen], at.rivals[chosen])

    low, high = torch.zeros_like(here), torch.zeros_like(here)
    guess, missing = here.abs() / slopes, here != 0
    for times in (1.1, 2.0, 4.0, 16.0, 64.0, math.inf):
        places = missing.nonzero()[:, 0]
        if not len(places):
            break
        m = torch.minimum(times * guess, 4 * t) if times < math.inf else 4 * t
        over = torch.zeros_like(missing).index_copy(0, places, value(m, places) >= 0)
        high = torch.where(over, m, high)
        missing &= ~over
        low = torch.where(missing, m, low)
    places = (~missing & (here != 0)).nonzero()[:, 0]
    depth = torch.zeros_like(here).masked_fill(missing, math.nan)
    if len(places):
        fine = 1e-11 if start.dtype == torch.float64 else 1e-7

        def along(m: Tensor) -> Tensor:
            return value(torch.zeros_like(here).index_copy(0, places, m), places)

        found, _ = crossing(along, low[places], high[places], fine)
        depth[places] = side[places] * found
    return depth
