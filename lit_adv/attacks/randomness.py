"""Counter-based random numbers: row i's numbers depend on its own seed alone.

The number for (seed, draw, element) is a hash of the three (the finaliser of SplitMix64, Steele et al. 2014), so it
does not depend on the batch, its order, the rank or the device, and no global generator is touched.
"""

from __future__ import annotations

import operator
import os

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit numbers, since torch has no unsigned arithmetic
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


class Draws:
    """A stream of random numbers for each row of a batch.

    Args:
        seeds: ``(B,)`` int64, one stream a row; `row_seeds` makes them.
        draw: Number of the next draw, counted up by every call.
    """

    def __init__(self, seeds: Tensor, draw: int = 0) -> None:
        self.seeds = seeds
        self.draw = draw

    def take(self, rows: Tensor) -> Draws:
        """The streams of some rows, at the same position."""
        return Draws(self.seeds[rows], self.draw)

    def integers(self, shape: tuple[int, ...], high: int) -> Tensor:
        """Uniform integers in ``[0, high)``, ``(B, *shape)`` int64."""
        # 53 bits leave a bias below 2^-21 for every range of pixels there can be
        return (self._words(shape) >> 11 & ((1 << 53) - 1)) % high

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in ``[0, 1)`` on a grid of 2^-24, ``(B, *shape)``."""
        return _unit(self._words(shape)).to(dtype)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers (Box-Muller in float64), ``(B, *shape)``."""
        radius = (_unit(self._words(shape)).double() + 2.0**-25).log_().mul_(-2).sqrt_()
        angle = _unit(self._words(shape)).double().mul_(2 * torch.pi)
        return (radius * angle.cos_()).to(dtype)

    def _words(self, shape: tuple[int, ...]) -> Tensor:
        streams = mix(self.seeds + _wrap(_GOLDEN * (self.draw + 1)))
        self.draw += 1
        count = 1
        for side in shape:
            count *= side
        elements = torch.arange(1, count + 1, device=self.seeds.device) * _GOLDEN
        return _mix_(streams[:, None] + elements).view(len(self.seeds), *shape)


def row_seeds(images: Tensor, seed: int | Tensor | None, owner: str = "row_seeds") -> Tensor:
    """One int64 seed per image.

    Args:
        images: ``(B, C, H, W)``.
        seed: An int is mixed with a checksum of each image's pixels, so rows differ and order does not matter; a
            ``(B,)`` int64 tensor is one seed a row; None takes fresh entropy.
        owner: Who asks; opens the error message.

    Raises:
        ValueError: A tensor of another shape or dtype, or no whole number.
    """
    if seed is None:
        fresh = int.from_bytes(os.urandom(8), "little", signed=True)
        return mix(torch.arange(len(images), device=images.device) * _GOLDEN + fresh)
    if isinstance(seed, Tensor):
        if seed.shape != images.shape[:1] or seed.dtype != torch.int64:
            raise ValueError(
                f"{owner}: seed must be an int, None or a LongTensor of shape ({len(images)},), "
                f"got {seed.dtype} of shape {tuple(seed.shape)}"
            )
        if seed.device.type == "meta":
            raise ValueError(f"{owner}: seed must hold values, got a tensor on the device meta")
        return mix(seed.to(images.device))
    try:
        number = operator.index(seed)
    except TypeError:
        raise ValueError(
            f"{owner}: seed must be an int, None or a LongTensor of shape ({len(images)},), got {seed!r}"
        ) from None
    return mix(checksum(images) ^ _wrap(number * _GOLDEN))


def checksum(images: Tensor) -> Tensor:
    """An int64 hash of each image's float32 pixels, ``(B,)``; the same on every device and in every batch."""
    # adding zero makes -0.0 and 0.0 the same pixel
    bits = (images.detach().float().flatten(1) + 0.0).contiguous().view(torch.int32).to(torch.int64)
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device) * _GOLDEN
    return _mix_(bits.add_(places)).sum(1)


def mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 words: every input bit moves every output bit."""
    return _mix_(words.clone())


def mix_int(*numbers: int) -> int:
    """One signed 64-bit number out of several; the same in every process."""
    word = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        word = mix((word ^ _wrap(number)) + _GOLDEN)
    return int(word)


def _mix_(words: Tensor) -> Tensor:
    # in place: for the numbers of a whole batch of images, new memory costs more than the arithmetic
    words.bitwise_xor_(_shift(words, 30)).mul_(_FIRST)
    words.bitwise_xor_(_shift(words, 27)).mul_(_SECOND)
    return words.bitwise_xor_(_shift(words, 31))


def _shift(words: Tensor, places: int) -> Tensor:
    # int64 shifts keep the sign, the hash needs them not to
    return (words >> places).bitwise_and_((1 << (64 - places)) - 1)


def _unit(words: Tensor) -> Tensor:
    return _shift(words, 40).to(torch.float32).mul_(2.0**-24)


def _wrap(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
