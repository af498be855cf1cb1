"""Paths between images of a class that do not leave the class."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, _call, _untouched
from lit_adv.attacks.deepfool import DeepFool
from lit_adv.attacks.norms import rows
from lit_adv.explain.boundary import check_classes, length
from lit_adv.explain.cam import _check


class ClassPaths(NamedTuple):
    """Paths between pairs of images, one a pair.

    Attributes:
        paths: Corners of each path, ``(n, C, H, W)`` from start to end; of one that fails, as far as it came.
        straight: ``(B,)`` bool, the straight path stays inside the class.
        connected: ``(B,)`` bool, the path found does; True wherever ``straight`` is.
        lengths: ``(B,)``, of the paths, over the straight one's.
    """

    paths: list[Tensor]
    straight: Tensor
    connected: Tensor
    lengths: Tensor


def class_paths(
    model: nn.Module,
    starts: Tensor,
    ends: Tensor,
    classes: Tensor,
    *,
    attack: Attack | None = None,
    depth: int = 6,
    samples: int = 64,
    seed: int = 0,
    chunk_size: int = 256,
) -> ClassPaths:
    """Looks for a path from image to image inside their class: the straight one, then one bent back into the class.

    Fawzi et al. 2018, "Empirical study of the topology and geometry of deep networks", section 3. Where a piece of the
    path leaves the class, its middle is pulled into the class by a targeted attack, a little beyond the boundary where
    the class goes on, and becomes a corner; then both halves are looked at. A class is left where one of the points
    looked at is of another: 4 times as many of them as while searching decide in the end. That no path is found
    does not mean that there is none.

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        starts: ``(B, C, H, W)`` in [0, 1].
        ends: ``(B, C, H, W)`` in [0, 1].
        classes: ``(B,)`` int64; a pair of which one image is not of its class is not connected.
        attack: Targeted, to pull points into the class; None takes `DeepFool`. The path stays in [0, 1].
        depth: How often a piece may be halved.
        samples: Points looked at on the straight path; a bent one has as many on the same length.
        seed: Of the attack.
        chunk_size: Points at once.

    Raises:
        ValueError: An argument is out of range, or shapes do not fit.
    """
    owner = "class_paths"
    _check(owner, starts, classes)
    check_paths(owner, depth, samples, chunk_size)
    if ends.shape != starts.shape:
        raise ValueError(f"{owner}: ends must have the shape of starts {tuple(starts.shape)}, got {tuple(ends.shape)}")
    attack = DeepFool() if attack is None else attack
    with _untouched(model) as inner, torch.no_grad():
        dtype = torch.promote_types(starts.dtype, torch.float32)
        starts, ends = starts.detach().to(dtype, copy=True), ends.detach().to(dtype, copy=True)
        classes = classes.clone()
        search = _Search(owner, model, inner, attack, seed, chunk_size)
        whole = length(ends - starts)
        spacing = whole / samples
        paths = [torch.stack(pair) for pair in zip(starts, ends, strict=True)]
        inside = search.inside(torch.cat([starts, ends]), classes.repeat(2))
        possible = inside[: len(starts)] & inside[len(starts) :]
        straight = possible & search.stays(paths, classes, spacing / 4)
        going = [bool(each) for each in possible & ~straight]
        for _ in range(depth):
            places = [place for place, go in enumerate(going) if go]
            if not places:
                break
            pieces = [(place, number) for place in places for number in range(len(paths[place]) - 1)]
            rows_of = torch.tensor([place for place, _ in pieces], device=starts.device)
            pairs = [paths[place][number : number + 2] for place, number in pieces]
            left = (~search.stays(pairs, classes[rows_of], spacing[rows_of] / 2)).nonzero()[:, 0].tolist()
            unfinished = {pieces[each][0] for each in left}
            going = [place in unfinished for place in range(len(paths))]
            if not left:
                break
            middles = torch.stack([pairs[each].mean(0) for each in left])
            pulled, reached = search.pull(middles, classes[rows_of[left]])
            # from the last piece to the first, so that the numbers of those before stay
            for each, corner, good in reversed(list(zip(left, pulled, reached.tolist(), strict=True))):
                place, number = pieces[each]
                if not good:
                    going[place] = False
                    continue
                paths[place] = torch.cat([paths[place][: number + 1], corner[None], paths[place][number + 1 :]])
        connected = straight | (possible & search.stays(paths, classes, spacing / 4))
    lengths = torch.stack([length(path[1:] - path[:-1]).sum() for path in paths]) if paths else whole
    return ClassPaths(paths, straight, connected, lengths / torch.where(whole > 0, whole, math.nan))


def points_on_path(path: Tensor, count: int) -> Tensor:
    """So many points of a path ``(n, C, H, W)``, equally far from each other along it, ``(count, C, H, W)``."""
    pieces = length(path[1:] - path[:-1]).double()
    ends = pieces.cumsum(0)
    wanted = torch.linspace(0, 1, count, dtype=torch.float64, device=path.device) * ends[-1]
    number = torch.searchsorted(ends, wanted).clamp(max=len(pieces) - 1)
    share = ((wanted - (ends - pieces)[number]) / pieces[number].clamp(min=1e-300)).clamp(0, 1).to(path.dtype)
    return path[number] + rows(share) * (path[number + 1] - path[number])


def check_paths(owner: str, depth: int, samples: int, chunk_size: int) -> None:
    """Raises ValueError for what `class_paths` can do with no image."""
    for field, value, least in (("depth", depth, 0), ("samples", samples, 2), ("chunk_size", chunk_size, 1)):
        if value < least:
            raise ValueError(f"{owner}: {field} must be at least {least}, got {value}")


class _Search:
    def __init__(self, owner: str, model: nn.Module, inner: nn.Module, attack: Attack, seed: int, size: int) -> None:
        self.owner, self.model, self.inner = owner, model, inner
        self.attack, self.seed, self.size = attack, seed, size

    def inside(self, points: Tensor, classes: Tensor) -> Tensor:
        """``(N,)`` bool: who is of its class."""
        found = []
        for part, of in zip(points.split(self.size), classes.split(self.size), strict=True):
            if len(part):
                logits = _call(self.inner, part)
                check_classes(self.owner, of, logits.shape[1])
                found.append(logits.argmax(1) == of)
        return torch.cat(found) if found else classes.bool()

    def stays(self, paths: list[Tensor], classes: Tensor, spacing: Tensor) -> Tensor:
        """``(N,)`` bool: which paths have no point outside their class, at this spacing and at their corners."""
        pieces = [(number, ends) for number, path in enumerate(paths) for ends in itertools.pairwise(path)]
        looked_at: list[tuple[int, float]] = []
        for place, (number, (near, far)) in enumerate(pieces):
            apart, step = float((far - near).norm()), float(spacing[number])
            count = max(2, math.ceil(apart / step) + 1) if step > 0 else 2
            looked_at += [(place, share) for share in torch.linspace(0, 1, count, dtype=near.dtype).tolist()]
        good = torch.ones(len(paths), dtype=torch.bool, device=classes.device)
        # points are made when they are looked at, as those of all paths are thousands of images
        for start in range(0, len(looked_at), self.size):
            part = looked_at[start : start + self.size]
            near, far = (torch.stack([pieces[place][1][end] for place, _ in part]) for end in (0, 1))
            shares = near.new_tensor([share for _, share in part])
            of = torch.tensor([pieces[place][0] for place, _ in part], device=classes.device)
            good[of[~self.inside(near + rows(shares) * (far - near), classes[of])]] = False
        return good

    def pull(self, points: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Points pulled into their class, and whether they are there."""
        pulled = torch.cat(
            [
                self.attack(self.model, part, of, targets=of, seed=self.seed)
                for part, of in zip(points.split(self.size), classes.split(self.size), strict=True)
            ]
        )
        # on the boundary the next piece would leave the class at once
        settled = torch.zeros_like(classes, dtype=torch.bool)
        deeper = pulled
        for times in (2.0, 1.5, 1.2):
            further = (points + times * (pulled - points)).clamp(0, 1)
            good = self.inside(further, classes) & ~settled
            deeper = torch.where(rows(good), further, deeper)
            settled |= good
        return deeper, self.inside(deeper, classes)
