"""What happens to an image on its way to us: resized, and kept as JPEG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lit_adv.attacks.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """Resizes some images and compresses some as JPEG, each by numbers drawn from its own seed.

    An image is resized first, as on the way to a website. So that a batch keeps its shape, a window of the old size is
    taken out of a resized image, at a random place; where the resized image is smaller, it goes on mirrored. What an
    image goes through depends on its seed alone, so that the clean and the adversarial image of a pair go through the
    same. Runs on the CPU, image by image.

    Args:
        jpeg: Least and greatest quality, 1 to 100, uniform in between; None for no JPEG.
        resize: Least and greatest factor, uniform in between on a logarithmic scale, bilinear or bicubic with
            antialiasing; None for no resizing.
        share: The probability of each of the two.

    Raises:
        ValueError: A field out of its range.
    """

    jpeg: tuple[int, int] | None = (50, 100)
    resize: tuple[float, float] | None = (0.5, 2.0)
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.jpeg is not None and not 1 <= self.jpeg[0] <= self.jpeg[1] <= 100:
            raise ValueError(f"Degradation: jpeg must be two qualities of 1 to 100, the lower first, got {self.jpeg}")
        if self.resize is not None and not 0 < self.resize[0] <= self.resize[1] < math.inf:
            raise ValueError(
                f"Degradation: resize must be two factors greater than 0, the lower first, got {self.resize}"
            )
        if not 0 <= self.share <= 1:
            raise ValueError(f"Degradation: share must be in [0, 1], got {self.share}")

    def __call__(self, seeds: Tensor, *batches: Tensor) -> tuple[Tensor, ...]:
        """The batches, degraded alike and rounded to 8 bits where anything was done.

        Args:
            seeds: ``(B,)`` int64.
            *batches: Each ``(B, C, H, W)`` float in [0, 1], C 1 or 3; they are left as they are.
        """
        draws = Draws(seeds.cpu())
        numbers = draws.uniform((7,), torch.float64).tolist()
        results = [batch.clone() for batch in batches]
        for row, (resizes, factor, filter_, down, right, compresses, quality) in enumerate(numbers):
            size, place, level = None, (down, right), None
            if self.resize is not None and resizes < self.share:
                low, high = self.resize
                size = low * (high / low) ** factor
            if self.jpeg is not None and compresses < self.share:
                level = self.jpeg[0] + int(quality * (self.jpeg[1] - self.jpeg[0] + 1))
            for result in results:
                image = result[row].cpu()
                if size is not None:
                    image = window(resized(image, size, "bicubic" if filter_ < 0.5 else "bilinear"), image, place)
                if level is not None:
                    image = compressed(image, level)
                if size is not None or level is not None:
                    result[row] = image.to(result)
        return tuple(results)


def compressed(image: Tensor, quality: int) -> Tensor:
    """An image ``(C, H, W)`` in [0, 1] after JPEG of a quality from 1 to 100 (Pillow's; colours at half resolution)."""
    file = io.BytesIO()
    _picture(image).save(file, format="JPEG", quality=quality)
    with Image.open(file) as picture:
        pixels = np.array(picture)
    levels = torch.from_numpy(pixels).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)
    return levels.to(image.dtype) / 255


def resized(image: Tensor, factor: float, mode: str = "bicubic") -> Tensor:
    """An image ``(C, H, W)`` in [0, 1] with its sides times a factor, antialiased, in 8 bits; at least 1 pixel."""
    size = [max(1, round(side * factor)) for side in image.shape[-2:]]
    # antialiasing of half precision exists on no device
    found = F.interpolate(image[None].float(), size=size, mode=mode, align_corners=False, antialias=True)[0]
    return ((found.clamp(0, 1) * 255).round() / 255).to(image.dtype)


def window(image: Tensor, like: Tensor, place: tuple[float, float]) -> Tensor:
    """A part of an image as large as another one; where the image is smaller, it goes on mirrored.

    Args:
        image: ``(C, h, w)``.
        like: ``(C, H, W)``.
        place: Where, from 0 (top, left) to 1 (bottom, right).
    """
    for dim, share in zip((-2, -1), place, strict=True):
        there, wanted = image.shape[dim], like.shape[dim]
        start = math.floor(share * (abs(there - wanted) + 1))
        index = torch.arange(wanted) + (start if there >= wanted else -start)
        # ... 2 1 0 0 1 2 ... n-1 n-1 ...
        index = index % (2 * there)
        image = image.index_select(dim, torch.minimum(index, 2 * there - 1 - index))
    return image


def _picture(image: Tensor) -> Image.Image:
    levels = (image * 255).round().to("cpu", torch.uint8).numpy()
    return Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(np.moveaxis(levels, 0, -1)))
