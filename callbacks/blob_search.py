"""Which blob to block: all blobs that the thresholds can make, and what each does to the training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_adv.attacks import Attack
from lit_adv.explain import attack_only_counts, mask_counts
from lit_adv.explain.regions import shares
from lit_adv.models import neutralize

from .class_pairs import ClassPair

BlobFrom = Literal["images", "representatives"]
Keep = Literal["source", "both"]


class Point(NamedTuple):
    """Thresholds of the RoI, of the RoA and of the blob."""

    delta1: float
    delta2: float
    theta: float


class Choice(NamedTuple):
    """A blob and where it comes from.

    Attributes:
        point: Its thresholds; None for the empty blob, where none of the grid keeps the accuracy.
        blob: ``(H, W)`` bool.
    """

    point: Point | None
    blob: Tensor


class RegionCounts:
    """In how many images of a class each pixel lies in which region, for all thresholds at once.

    Counts of batches and of processes add up, so that no map is kept and every map is made once.

    Args:
        deltas1: Thresholds of the RoI.
        deltas2: Thresholds of the RoA.
        size: (H, W).
        device: Of the maps.

    Attributes:
        images: How many have been counted.
        empty: How many of them have an activation map that is 0 everywhere, and thus no RoI.
    """

    def __init__(
        self, deltas1: Sequence[float], deltas2: Sequence[float], size: tuple[int, int], device: torch.device
    ) -> None:
        self.deltas1, self.deltas2 = list(deltas1), list(deltas2)
        d1, d2 = len(self.deltas1), len(self.deltas2)
        self.images = self.empty = 0
        # one tensor, so that processes exchange one: U-V of all pairs of thresholds, then RoI, then RoA
        self.counts = torch.zeros(d1 * d2 + d1 + d2, *size, dtype=torch.int64, device=device)

    def update(self, importance: Tensor, attack: Tensor) -> None:
        """Counts the graded maps of a batch, ``(B, H, W)`` each."""
        both = attack_only_counts(importance, attack, self.deltas1, self.deltas2).flatten(0, 1)
        self.counts += torch.cat([both, mask_counts(importance, self.deltas1), mask_counts(attack, self.deltas2)])
        self.images += len(importance)
        self.empty += int((importance == 0).flatten(1).all(1).sum())

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds the counts of all processes."""
        self.counts = total(self.counts)
        both = total(torch.tensor([self.images, self.empty], device=self.counts.device))
        self.images, self.empty = both.tolist()

    def representatives(self, delta1: float, delta2: float) -> tuple[Tensor, Tensor]:
        """R_I and R_A, ``(H, W)`` float64 in [0, 1]."""
        d1, d2 = len(self.deltas1), len(self.deltas2)
        place1, place2 = self.deltas1.index(delta1), self.deltas2.index(delta2)
        found = self.counts[d1 * d2 + place1], self.counts[d1 * d2 + d1 + place2]
        return shares(found[0], self.images), shares(found[1], self.images)

    def blob(self, point: Point, source: BlobFrom = "images") -> Tensor:
        """The blob of these thresholds, ``(H, W)`` bool (see `blob_of_masks` and `blob_of_representatives`)."""
        if source == "representatives":
            importance, attack = self.representatives(point.delta1, point.delta2)
            return (attack >= point.theta) & (importance < point.theta)
        place = self.deltas1.index(point.delta1) * len(self.deltas2) + self.deltas2.index(point.delta2)
        return shares(self.counts[place], self.images) >= point.theta


class BlobSearch:
    """The distinct blobs of a grid of thresholds for one class pair, and how the training images fare behind each.

    Every image of the source class is called three times for a blob, once with a gradient, where the attack takes one
    step: modified, in the attack, and attacked. The last two are left out for a blob that costs too much accuracy.
    Where both classes must keep their accuracy, images of the target class are called once.

    Args:
        pair: The classes.
        counts: Of the pair's regions, of all processes.
        grid: The thresholds.
        source: What blobs are made of.
        value: What blocked pixels become.
        attack: The attack.
        seed: Of the attack.
        chunk_size: Most images that are looked at together.
        keep: Whose accuracy counts, the source class' or that of both.
    """

    def __init__(
        self,
        pair: ClassPair,
        counts: RegionCounts,
        grid: Sequence[Point],
        source: BlobFrom,
        value: float,
        attack: Attack,
        seed: int,
        chunk_size: int,
        keep: Keep = "source",
    ) -> None:
        self.pair, self.grid, self.value = pair, list(grid), value
        self.attack, self.seed, self.chunk_size = attack, seed, chunk_size
        made = torch.stack([counts.blob(point, source) for point in self.grid])
        # nothing blocked can always be chosen, and stands first among equals
        made = torch.cat([torch.zeros_like(made[:1]), made])
        blobs, places = torch.unique(made.flatten(1), dim=0, return_inverse=True)
        self.blobs = blobs.view(-1, *made.shape[1:])
        self.nothing, self.places = int(places[0]), places[1:]
        # by class, the source first: images, right ones without and behind each blob
        classes = {"source": 1, "both": 2}[keep]
        self.images = torch.zeros(classes, dtype=torch.int64, device=made.device)
        self.clean = torch.zeros_like(self.images)
        self.modified = self.images.new_zeros(classes, len(self.blobs))
        self.attacked = torch.zeros_like(self.modified[0])

    def score_modified(self, images: Tensor, labels: Tensor) -> None:
        """Counts what the classifier makes of a batch of all classes behind every blob."""
        for place in range(len(self.images)):
            own = images[labels == (self.pair.target if place else self.pair.source)]
            self.images[place] += len(own)
            self.clean[place] += self.pair.right(own, target=bool(place)).sum()
            for some, modified in self._behind(own, torch.arange(len(self.blobs), device=images.device)):
                hits = self.pair.right(modified, target=bool(place))
                self.modified[place, some] += hits.view(len(some), -1).sum(1)

    def score_attacked(self, images: Tensor, labels: Tensor, wanted: Tensor) -> None:
        """The same for the source class after an attack, for the blobs ``wanted``, ``(M,)`` bool."""
        own = images[labels == self.pair.source]
        for some, modified in self._behind(own, wanted.nonzero()[:, 0]):
            made = self.pair.attacked(self.attack, modified, self.seed)
            self.attacked[some] += self.pair.right(made).view(len(some), -1).sum(1)

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds the counts of `score_modified` of all processes."""
        self.images, self.clean, self.modified = total(self.images), total(self.clean), total(self.modified)

    def reduce_attacked(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds the counts of `score_attacked` of all processes."""
        self.attacked = total(self.attacked)

    @property
    def drop(self) -> Tensor:
        """Accuracy lost behind each blob, by the class that loses more, ``(M,)`` float64."""
        # a class without images loses nothing
        return ((self.clean[:, None] - self.modified).double() / self.images[:, None].clamp(min=1)).amax(0)

    @property
    def robust(self) -> Tensor:
        """Accuracy under attack behind each blob, ``(M,)`` float64."""
        return shares(self.attacked, int(self.images[0]))

    def choose(self, max_drop: float) -> Choice:
        """The blob with the best accuracy under attack of those that cost at most ``max_drop``."""
        candidates = torch.cat([self.places.new_tensor([self.nothing]), self.places])
        best = _best(self.robust[candidates], self.drop[candidates], self._sizes[candidates], max_drop)
        return self.choice(best)

    def choice(self, candidate: int) -> Choice:
        """Candidate 0 is nothing blocked, the others are the points of the grid."""
        if candidate == 0:
            return Choice(None, self.blobs[self.nothing])
        return Choice(self.grid[candidate - 1], self.blobs[self.places[candidate - 1]])

    @property
    def _sizes(self) -> Tensor:
        return self.blobs.flatten(1).sum(1)

    def _behind(self, images: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of some blobs and all images behind each of them, blob by blob."""
        if not len(images):
            return
        for some in chosen.split(max(1, self.chunk_size // len(images))):
            blobs = self.blobs[some].repeat_interleave(len(images), 0)
            yield some, neutralize(images.repeat(len(some), 1, 1, 1), blobs, self.value)


def common_choice(searches: Sequence[BlobSearch], max_drop: float) -> list[Choice]:
    """One point of the grid for all pairs, each with its own blob there: the best means over the pairs."""
    columns = []
    for each in searches:
        candidates = torch.cat([each.places.new_tensor([each.nothing]), each.places])
        columns.append(torch.stack([each.robust[candidates], each.drop[candidates], each._sizes[candidates].double()]))
    robust, drop, sizes = torch.stack(columns).mean(0)
    best = _best(robust, drop, sizes, max_drop)
    return [each.choice(best) for each in searches]


def wanted_blobs(searches: Sequence[BlobSearch], max_drop: float) -> list[Tensor]:
    """For each search the blobs that may still be chosen, by itself or for all pairs together: ``(M,)`` bool."""
    together = torch.stack([each.drop[each.places] for each in searches]).mean(0) <= max_drop + _ROUNDING
    found = []
    for each in searches:
        wanted = each.drop <= max_drop + _ROUNDING
        if len(searches) > 1:
            wanted[each.places[together]] = True
        wanted[each.nothing] = True
        found.append(wanted)
    return found


def grid_points(values: Sequence[float]) -> list[Point]:
    """All combinations of three thresholds."""
    return [Point(*each) for each in product(values, repeat=3)]


# a loss of one image in 50 is 0.02, whatever the last bit says
_ROUNDING = 1e-9


def _best(robust: Tensor, drop: Tensor, sizes: Tensor, max_drop: float) -> int:
    """The first of the most robust, then of the least costly, then of the smallest blobs."""
    rows = zip(robust.tolist(), drop.tolist(), sizes.tolist(), strict=True)
    allowed = [
        (-kept, lost, size, place) for place, (kept, lost, size) in enumerate(rows) if lost <= max_drop + _ROUNDING
    ]
    # nothing blocked loses nothing
    return min(allowed)[-1]
