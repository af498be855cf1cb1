"""Where an attack may change an image: an image batch to a 0/1 mask, one mask for all channels.

``region(images, seed=None)`` is ``(1, 1, H, W)`` where the mask is the same for every image and ``(B, 1, H, W)`` where
it is drawn, in the images' dtype. A length is an int in pixels or a float, a share of the image's side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_adv.attacks.fingerprint import fingerprint
from lit_adv.attacks.randomness import Draws, mix, row_seeds


class Region(ABC):
    """A rule that gives the pixels an attack may change."""

    def __call__(self, images: Tensor, seed: int | Tensor | None = None) -> Tensor:
        """The mask for a batch.

        Args:
            images: ``(B, C, H, W)``.
            seed: As in the attack call; the same seed and image give the same mask.

        Returns:
            ``(B, 1, H, W)`` or ``(1, 1, H, W)`` of zeros and ones.
        """
        if images.ndim != 4:
            raise ValueError(f"{type(self).__name__}: images must be (B, C, H, W), got shape {tuple(images.shape)}")
        return self._mask(images, seed).to(images.dtype)

    def fingerprint(self) -> str:
        """SHA-256 of class and fields, the same in every process."""
        return fingerprint(self)

    @abstractmethod
    def _mask(self, images: Tensor, seed: int | Tensor | None) -> Tensor: ...


@dataclass(frozen=True, kw_only=False)
class Center(Region):
    """A centred square (Ozbulak et al., regional perturbations).

    Args:
        size: Side in pixels, or as a share of each of the image's sides, rounded to the parity of that side.
    """

    size: int | float

    def __post_init__(self) -> None:
        _check_length("Center", "size", self.size)

    def _mask(self, images: Tensor, seed: int | Tensor | None) -> Tensor:
        height, width = images.shape[-2:]
        rows = _centred(height, _inner("Center", "size", self.size, height), images.device)
        return (rows[:, None] & _centred(width, _inner("Center", "size", self.size, width), images.device))[None, None]


@dataclass(frozen=True)
class Frame(Region):
    """The border: what is left outside a centred square (Ozbulak et al.).

    Args:
        thickness: Both sides together: pixels, or a share of the image's side.
    """

    thickness: int | float

    def __post_init__(self) -> None:
        _check_length("Frame", "thickness", self.thickness)

    def _mask(self, images: Tensor, seed: int | Tensor | None) -> Tensor:
        inside = []
        for side in images.shape[-2:]:
            if isinstance(self.thickness, int):
                inner = side - _inner("Frame", "thickness", self.thickness, side)
            else:
                inner = _parity(side * (1 - self.thickness), side)
            inside.append(_centred(side, inner, images.device))
        return ~(inside[0][:, None] & inside[1])[None, None]


@dataclass(frozen=True)
class RandomPixels(Region):
    """Pixels drawn at random (Ozbulak et al., whose code draws each pixel by itself and one mask for all images).

    Args:
        fraction: Share of the pixels, in [0, 1].
        exact: Draw exactly ``round(fraction * H * W)`` pixels; otherwise each pixel by itself with that probability.
        shared: None draws another set for every image, by the seed of the call; a number draws one set for all images,
            by this number alone.
    """

    fraction: float
    exact: bool = True
    shared: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"RandomPixels: fraction must be in [0, 1], got {self.fraction}")

    def _mask(self, images: Tensor, seed: int | Tensor | None) -> Tensor:
        height, width = images.shape[-2:]
        seeds = row_seeds(images, seed)
        if self.shared is not None:
            seeds = mix(torch.tensor([self.shared], device=images.device))
        scores = Draws(seeds).uniform((height * width,))
        if not self.exact:
            return (scores < self.fraction).view(-1, 1, height, width)
        chosen = scores.argsort(dim=1, stable=True)[:, : round(self.fraction * height * width)]
        return torch.zeros_like(scores).scatter(1, chosen, 1).view(-1, 1, height, width)


@dataclass(frozen=True)
class RandomPatch(Region):
    """A rectangle at a random place, another place for every image; every place is equally likely.

    Args:
        size: Side of the square in pixels or as a share of the image's side, or (height, width).
    """

    size: int | float | tuple[int | float, int | float]

    def __post_init__(self) -> None:
        for length in self.size if isinstance(self.size, tuple) else (self.size,):
            _check_length("RandomPatch", "size", length)

    def _mask(self, images: Tensor, seed: int | Tensor | None) -> Tensor:
        sizes = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        draws = Draws(row_seeds(images, seed))
        spans = []
        for side, length in zip(images.shape[-2:], sizes, strict=True):
            if isinstance(length, int) and length > side:
                raise ValueError(f"RandomPatch: size must be at most the image's {side} pixels, got {length}")
            long = length if isinstance(length, int) else round(length * side)
            start = draws.integers((1,), side - long + 1)
            place = torch.arange(side, device=images.device)
            spans.append((place >= start) & (place < start + long))
        return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


@dataclass(frozen=True, eq=False)
class Mask(Region):
    """A mask that you give.

    Args:
        mask: Zeros and ones, ``(H, W)``, ``(1, H, W)``, ``(1, 1, H, W)`` or, one for each image, ``(B, 1, H, W)``.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if self.mask.ndim not in (2, 3, 4) or (self.mask.ndim > 2 and self.mask.shape[-3] != 1):
            raise ValueError(f"Mask: mask must be (H, W) or (B, 1, H, W), got shape {tuple(self.mask.shape)}")
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise ValueError("Mask: mask must hold zeros and ones only")

    def _mask(self, images: Tensor, seed: int | Tensor | None) -> Tensor:
        mask = self.mask.to(images.device)
        mask = mask.view(-1, 1, *mask.shape[-2:])
        if mask.shape[-2:] != images.shape[-2:] or len(mask) not in (1, len(images)):
            raise ValueError(
                f"Mask: mask must fit images of shape {tuple(images.shape)}, got shape {tuple(self.mask.shape)}"
            )
        return mask


def _check_length(owner: str, field: str, length: float) -> None:
    if not length >= 0 or (isinstance(length, float) and length > 1):
        raise ValueError(
            f"{owner}: {field} must be an int >= 0 (pixels) or a float in [0, 1] (a share of the side), got {length}"
        )


def _inner(owner: str, field: str, length: float, side: int) -> int:
    if isinstance(length, int):
        if length > side:
            raise ValueError(f"{owner}: {field} must be at most the image's {side} pixels, got {length}")
        return length
    return _parity(length * side, side)


def _parity(length: float, side: int) -> int:
    """The whole number nearest to ``length`` that leaves both margins of ``side`` equal, or 0."""
    # no pixel has no parity
    return max(side - 2 * round((side - length) / 2), 0) if length > 0 else 0


def _centred(side: int, length: int, device: torch.device) -> Tensor:
    start = (side - length) // 2
    place = torch.arange(side, device=device)
    return (place >= start) & (place < start + length)
