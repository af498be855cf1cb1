"""How far the decision boundary is, and whether one goes there at a right angle."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, _call, _untouched
from lit_adv.attacks.deepfool import DeepFool
from lit_adv.attacks.norms import rows
from lit_adv.explain.cam import _check

Precision = Literal["float64", "model"]
CONVERGED = 0.9
"""Below this cosine the nearest point was not found: it says nothing about the boundary."""


class Boundary(NamedTuple):
    """The nearest boundary points found, one row an image; numbers are NaN where ``found`` is False.

    Attributes:
        images: ``(B, C, H, W)``, x, in the precision of the computation, as everything here.
        points: ``(B, C, H, W)``, b = x + r; not confined to [0, 1].
        classes: ``(B,)`` int64, the class that is left.
        rivals: ``(B,)`` int64, the class l on the other side of b.
        normals: ``(B, C, H, W)``, the gradient of ``f_l = Z_l - Z_class`` at b, of length 1.
        slopes: ``(B,)``, that gradient's length.
        found: ``(B,)`` bool; False where the attack fails, the image is not of the class, or f has no gradient at b.
        attack_distances: ``(B,)``, L2 norm of what the attack found, in pixel units of [0, 1].
        distances: ``(B,)``, ``||r||_2``, at most that.
        ratios: ``(B,)``, ``||r|| / ||x||``; rho is their mean. NaN for an image of zeros.
        cosines: ``(B,)``, between r and the normal: 1 at the nearest point of a smooth boundary.
        angles: ``(B,)``, the same in radians, exact where the cosine is rounded to 1.
        ties: ``(B,)``, ``|max_k f_k(b)|``, what is left of the difference of the two largest logits.
        rounds: ``(B,)`` int64, turns towards the normal that were taken.
    """

    images: Tensor
    points: Tensor
    classes: Tensor
    rivals: Tensor
    normals: Tensor
    slopes: Tensor
    found: Tensor
    attack_distances: Tensor
    distances: Tensor
    ratios: Tensor
    cosines: Tensor
    angles: Tensor
    ties: Tensor
    rounds: Tensor

    def take(self, chosen: Tensor) -> Boundary:
        """The rows chosen by their places or by a mask."""
        return Boundary(*(part[chosen] for part in self))


def boundary_distance(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    attack: Attack | None = None,
    rounds: int = 10,
    tolerance: float = 1e-6,
    precision: Precision = "float64",
    seed: int = 0,
    chunk_size: int = 64,
) -> Boundary:
    """Distance to the decision boundary: a minimal-norm attack, bisection along it, and turns towards the normal.

    Fawzi et al. 2017, "The robustness of deep networks: a geometrical perspective", section 4. The attack finds
    a point of another class. Bisection on its ray, with interpolated steps in between, finds the boundary to
    ``|max_k f_k| <= tolerance``, where ``f_k = Z_k - Z_class``. While r and the normal at x + r differ by more than
    rounding does, x is projected onto the tangent plane there, and the ray through the projection is bisected; a ray
    that does not meet the boundary nearer than before is taken back half way. No round makes r longer. The boundary is
    that of the network on all of R^d: x + r may leave [0, 1], where the attack stays.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1]; each is treated by itself.
        classes: ``(B,)`` int64, the classes to leave; None takes the predictions.
        attack: Any that looks for a small L2 perturbation; None takes `DeepFool`.
        rounds: Most turns towards the normal.
        tolerance: Of ``|max_k f_k|``, in logits.
        precision: ``float64`` computes with a copy of the weights in float64; the attack always has the model itself.
            ``model`` keeps the model's own: in float32 ties end between about 1e-7 and 1e-6 times the logits' size.
        seed: Of the attack.
        chunk_size: Images at once.

    Raises:
        ValueError: An argument is out of range or of another kind, or logits are not finite.
    """
    owner = "boundary_distance"
    _check(owner, images, classes)
    attack = DeepFool() if attack is None else attack
    check_boundary(owner, attack, rounds, tolerance, precision, chunk_size)
    parts = []
    with _untouched(model) as inner:
        network = Network(owner, inner, precision, images)
        for start in range(0, max(len(images), 1), chunk_size):
            part = slice(start, start + chunk_size)
            given = images[part].detach().clone()
            of = network.logits(given.to(network.dtype)).argmax(1) if classes is None else classes[part].clone()
            of = of.to(images.device)
            crafted = attack(model, given, of, seed=seed)
            parts.append(_refined(network, given.to(network.dtype), of, crafted.to(network.dtype), rounds, tolerance))
    return Boundary(*(torch.cat(column) for column in zip(*parts, strict=True)))


def boundary_angle(
    model: nn.Module, images: Tensor, points: Tensor, classes: Tensor, *, precision: Precision = "float64"
) -> tuple[Tensor, Tensor]:
    """Cosine and angle between ``r = points - images`` and the boundary's normal, the gradient of f_l, at the points.

    Args:
        model: From images to logits.
        images: ``(B, C, H, W)``.
        points: ``(B, C, H, W)`` on the boundary; l is the class other than ``classes`` with the largest logit there.
        classes: ``(B,)`` int64, of the images.
        precision: As in `boundary_distance`.

    Returns:
        ``(B,)`` cosines and ``(B,)`` angles in radians, in [0, pi]; NaN where either vector is 0.
    """
    owner = "boundary_angle"
    _check(owner, points, classes)
    if images.shape != points.shape:
        raise ValueError(
            f"{owner}: images must have the points' shape {tuple(points.shape)}, got {tuple(images.shape)}"
        )
    check_precision(owner, precision)
    with _untouched(model) as inner:
        network = Network(owner, inner, precision, points)
        b = points.detach().to(network.dtype, copy=True)
        _, rivals = network.gap(b, classes)
        normals = network.gradient(b, classes, rivals)
        return _angle(b - images.detach().to(network.dtype, copy=True), normals)


class Network:
    """A classifier in a chosen precision, and the differences of its logits.

    Args:
        owner: Who asks; opens the error messages.
        model: Inside `_untouched`.
        precision: As in `boundary_distance`.
        images: Any of those it will see.
    """

    def __init__(self, owner: str, model: Any, precision: Precision, images: Tensor) -> None:
        self.owner, self.model = owner, model
        self.dtype = torch.float64 if precision == "float64" else torch.promote_types(images.dtype, torch.float32)
        self.weights: dict[str, Tensor] = {}
        if precision == "float64" and isinstance(model, nn.Module):
            given = (*model.named_parameters(), *model.named_buffers())
            self.weights = {name: each.detach().double() for name, each in given if each.is_floating_point()}

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(B, K)`` with their graph, if gradients are on."""
        if self.weights:
            kind = x.device.type
            plain = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()
            try:
                with plain:
                    # a copy, since a model may normalise in place
                    logits = torch.func.functional_call(self.model, self.weights, (x.clone(),))
            except RuntimeError as error:
                raise ValueError(
                    f"{self.owner}: precision must be model for this network, got float64, in which it fails: {error}"
                ) from error
        else:
            logits = _call(self.model, x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x) or logits.shape[1] < 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"{self.owner}: model must return logits of shape ({len(x)}, K) with K at least 2, got {got}"
            )
        logits = logits.to(self.dtype)
        if not bool(logits.isfinite().all()):
            row = int((~logits.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"{self.owner}: image {row} gives logits of NaN or infinity (look at the image and at the network)"
            )
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """Without a graph."""
        with torch.no_grad():
            return self(x)

    def gap(self, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """``max_k f_k`` ``(B,)``, below 0 inside the class, and its k ``(B,)``."""
        logits = self.logits(x)
        check_classes(self.owner, classes, logits.shape[1])
        others = logits.scatter(1, classes[:, None], -math.inf)
        largest, rivals = others.max(1)
        return largest - logits.gather(1, classes[:, None])[:, 0], rivals

    def pair(self, x: Tensor, classes: Tensor, rivals: Tensor) -> Tensor:
        """``f_l = Z_l - Z_class``, ``(B,)``."""
        return _difference(self.logits(x), classes, rivals)

    def gradient(self, x: Tensor, classes: Tensor, rivals: Tensor) -> Tensor:
        """That of f_l, ``(B, C, H, W)``; 0 where the model ignores its input."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            total = _difference(self(x), classes, rivals).sum()
            if not total.requires_grad:
                return torch.zeros_like(x)
            (found,) = torch.autograd.grad(total, x, allow_unused=True)
        return torch.zeros_like(x) if found is None else found.detach()


def crossing(
    value: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, tolerance: float, steps: int = 120
) -> tuple[Tensor, Tensor]:
    """Where a function of one number crosses 0, by bisection with an interpolated step before each halving.

    Args:
        value: From ``(B,)`` to ``(B,)``; below 0 at ``low``, at least 0 at ``high``.
        low: ``(B,)``.
        high: ``(B,)``.
        tolerance: A row ends once its value is at most so far from 0, whatever the other rows do.
        steps: Most of them.

    Returns:
        ``(B,)`` the places with the values nearest to 0, and those values.
    """
    below, above = value(low), value(high)
    best, least = high, above
    for step in range(steps):
        # an interval as short as two neighbouring numbers cannot be halved
        going = (least.abs() > tolerance) & (high - low > 2 * torch.finfo(high.dtype).eps * high.abs())
        if not bool(going.any()):
            break
        middle = (low + high) / 2
        if step % 2 == 0:
            share = (-below / (above - below)).nan_to_num(0.5).clamp(0, 1)
            middle = low + share * (high - low)
        found = value(middle)
        over = found >= 0
        nearer = going & (found.abs() < least.abs())
        best, least = torch.where(nearer, middle, best), torch.where(nearer, found, least)
        high, above = torch.where(over, middle, high), torch.where(over, found, above)
        low, below = torch.where(over, low, middle), torch.where(over, below, found)
    return best, least


def check_boundary(owner: str, attack: Attack, rounds: int, tolerance: float, precision: str, chunk_size: int) -> None:
    """Raises ValueError for what `boundary_distance` can do with no image."""
    if not isinstance(attack, Attack) or not attack.minimal_norm or getattr(attack, "norm", "l2") != "l2":
        raise ValueError(
            f"{owner}: attack must look for a small L2 perturbation, as DeepFool and DDN do, got {attack!r}"
        )
    if rounds < 0:
        raise ValueError(f"{owner}: rounds must be at least 0, got {rounds}")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"{owner}: tolerance must be at least 0, in logits, got {tolerance:g}")
    if chunk_size < 1:
        raise ValueError(f"{owner}: chunk_size must be at least 1, got {chunk_size}")
    check_precision(owner, precision)


def check_precision(owner: str, precision: str) -> None:
    """Raises ValueError for anything but the two."""
    if precision not in get_args(Precision):
        raise ValueError(f"{owner}: precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")


def check_classes(owner: str, classes: Tensor, count: int) -> None:
    """Raises ValueError for classes that the network does not have."""
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise ValueError(
            f"{owner}: classes must be in [0, {count}), the network's, got {int(classes.min())} to {int(classes.max())}"
        )


def length(vectors: Tensor) -> Tensor:
    """``(B,)`` L2 norms of ``(B, ...)``."""
    return vectors.flatten(1).norm(dim=1)


def dot(one: Tensor, two: Tensor) -> Tensor:
    """``(B,)`` inner products of ``(B, ...)``."""
    return (one.flatten(1) * two.flatten(1)).sum(1)


def unit(vectors: Tensor) -> Tensor:
    """``(B, ...)`` of length 1; NaN where there was no length."""
    return vectors / rows(length(vectors))


def _refined(
    network: Network, x: Tensor, classes: Tensor, crafted: Tensor, rounds: int, tolerance: float
) -> tuple[Tensor, ...]:
    count = len(x)
    if not count:
        none, whole = x.new_zeros(0), classes.new_zeros(0)
        return x, x, classes, whole, x, none, whole.bool(), none, none, none, none, none, none, whole
    start, _ = network.gap(x, classes)
    reached = length(crafted - x)
    direction, far = unit(crafted - x), reached.clone()
    # in another precision than the attack's the point may still be on the near side
    for share in (1.01, 1.1, 1.5):
        end, _ = network.gap(x + rows(far) * direction.nan_to_num(), classes)
        far = torch.where(end < 0, share * reached, far)
    end, _ = network.gap(x + rows(far) * direction.nan_to_num(), classes)
    found = (start < 0) & (end >= 0) & (far > 0)
    b, normals = x.clone(), torch.zeros_like(x)
    cosines, angles, slopes, ties = (torch.full_like(reached, math.nan) for _ in range(4))
    rivals, turns = classes.clone(), torch.zeros_like(classes)

    def put(places: Tensor, along: Tensor, near: Tensor, beyond: Tensor) -> Tensor:
        """The boundary on these rows' rays; returns whether it was reached."""
        origin, of = x[places], classes[places]
        at, tie = crossing(lambda t: network.gap(origin + rows(t) * along, of)[0], near, beyond, tolerance)
        point = origin + rows(at) * along
        rival = network.gap(point, of)[1]
        gradient = network.gradient(point, of, rival)
        b[places], rivals[places], ties[places] = point, rival, tie.abs()
        slopes[places], normals[places] = length(gradient), unit(gradient)
        cosines[places], angles[places] = _angle(along, gradient)
        return at

    places = found.nonzero()[:, 0]
    distances = torch.full_like(reached, math.nan)
    distances[places] = put(places, direction[places], torch.zeros_like(far[places]), far[places])
    towards = torch.ones_like(reached)
    for _ in range(rounds):
        # not the cosine, which is rounded to 1 at angles that a single turn takes away
        places = (found & (angles > _STRAIGHT * torch.finfo(x.dtype).eps)).nonzero()[:, 0]
        if not len(places):
            break
        old = unit(b[places] - x[places])
        # the projection of x onto the tangent plane lies on the ray along the normal
        along = unit(old + rows(towards[places]) * (normals[places] - old))
        reach = distances[places]
        meets = (cosines[places] > 0) & (network.gap(x[places] + rows(reach) * along, classes[places])[0] >= 0)
        turns[places] += 1
        towards[places] = torch.where(meets, 1.0, towards[places] / 2)
        better = places[meets]
        if len(better):
            distances[better] = put(better, along[meets], torch.zeros_like(reach[meets]), reach[meets])
    found &= slopes.nan_to_num() > 0
    missing = ~found
    cosines, angles = _angle(b - x, normals)
    size = length(x)
    numbers = (slopes, reached, distances, distances / torch.where(size > 0, size, math.nan), cosines, angles, ties)
    slopes, reached, distances, ratios, cosines, angles, ties = (
        each.masked_fill(missing, math.nan) for each in numbers
    )
    b, normals = (torch.where(rows(missing), math.nan, each) for each in (b, normals))
    return x, b, classes, rivals, normals, slopes, found, reached, distances, ratios, cosines, angles, ties, turns


_STRAIGHT = 1000


def _angle(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    one, two = unit(one), unit(two)
    # the arc cosine would make an angle of 1e-8 out of the last bit
    angles = 2 * torch.atan2(length(one - two), length(one + two))
    return dot(one, two), angles


def _difference(logits: Tensor, classes: Tensor, rivals: Tensor) -> Tensor:
    return (logits.gather(1, rivals[:, None]) - logits.gather(1, classes[:, None]))[:, 0]
