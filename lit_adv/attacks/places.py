"""Places for attacks that choose pixels rather than weigh them."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_allowed(mask: Tensor) -> Tensor:
    """For every pixel one that may change: the nearest in the nearest row that has one.

    Args:
        mask: ``(B, 1, H, W)`` of zeros and ones.

    Returns:
        ``(B, H W)`` int64, indices of pixels, row by row; some pixel where none may change.
    """
    allowed, width = mask[:, 0] > 0, mask.shape[3]
    row = _nearest(allowed.any(2))
    column = _nearest(allowed).gather(1, row[:, :, None].expand(-1, -1, width))
    return (row[:, :, None] * width + column).flatten(1)


def _nearest(allowed: Tensor) -> Tensor:
    """For every place of the last dimension the nearest allowed one."""
    count = allowed.shape[-1]
    places = torch.arange(count, device=allowed.device)
    before = torch.where(allowed, places, -count).cummax(dim=-1).values
    after = torch.where(allowed, places, 2 * count).flip(-1).cummin(dim=-1).values.flip(-1)
    return torch.where(places - before <= after - places, before, after).clamp(0, count - 1)
