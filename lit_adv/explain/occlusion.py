"""What a square of an image is worth to a class."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.explain.cam import _check
from lit_adv.explain.gradient_maps import class_scores

OcclusionScore = Literal["probability", "logit"]


def occlusion_map(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    size: int,
    stride: int = 1,
    fill: float | Literal["mean"] = 0.5,
    score: OcclusionScore = "probability",
    chunk_size: int = 64,
) -> Tensor:
    """How much a class loses when a square is covered (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2).

    Args:
        model: From images to logits; it is called in eval mode and left as it was.
        images: ``(B, C, H, W)`` in [0, 1]; each is treated by itself.
        classes: ``(B,)`` int64; None takes the predictions.
        size: Side of the square in pixels, at most the images' smaller side.
        stride: From one square to the next; what the last one leaves over at the right and lower edge is not covered.
        fill: Value of the covered pixels in [0, 1], or ``mean`` for each image's own mean colour.
        score: Probability of the class, or its logit.
        chunk_size: Most covered images in a batch.

    Returns:
        ``(B, (H - size) // stride + 1, (W - size) // stride + 1)``: the score of the image minus that of the covered
        one, for the square whose upper left pixel is ``stride`` times the place.

    Raises:
        ValueError: An argument is out of range or of another kind, or a score is not finite.
    """
    owner = "occlusion_map"
    _check(owner, images, classes)
    height, width = images.shape[2:]
    check_square(owner, size, stride, fill, score, chunk_size)
    if size > min(height, width):
        raise ValueError(f"{owner}: size must be at most the images' smaller side {min(height, width)}, got {size}")
    down, across = (height - size) // stride + 1, (width - size) // stride + 1
    dtype = torch.promote_types(images.dtype, torch.float32)
    if not len(images):
        return images.new_zeros(0, down, across, dtype=dtype)

    def scores(logits: Tensor, of: Tensor) -> Tensor:
        logits = logits.to(dtype)
        return class_scores(owner, logits.softmax(1) if score == "probability" else logits, of, len(logits))[0]

    with _untouched(model) as inner, torch.no_grad():
        images = images.detach().to(dtype, copy=True)
        colour = images.mean((2, 3), keepdim=True) if fill == "mean" else torch.full_like(images[:, :1, :1, :1], fill)
        before, of = [], []
        for part, rows in zip(images.split(chunk_size), torch.arange(len(images)).split(chunk_size), strict=True):
            answer = _call(inner, part)
            chosen = class_scores(
                owner, answer, None if classes is None else classes[rows.to(classes.device)], len(part)
            )[1]
            before.append(scores(answer, chosen))
            of.append(chosen)
        before_all, of_all = torch.cat(before), torch.cat(of)
        drops = []
        y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        for places in torch.arange(len(images) * down * across, device=images.device).split(chunk_size):
            rows, place = places // (down * across), places % (down * across)
            top, left = place // across * stride, place % across * stride
            inside_y = (y >= top[:, None]) & (y < top[:, None] + size)
            inside_x = (x >= left[:, None]) & (x < left[:, None] + size)
            covered = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
            answer = _call(inner, torch.where(covered, colour[rows], images[rows]))
            drops.append(before_all[rows] - scores(answer, of_all[rows]))
    found = torch.cat(drops)
    if not bool(found.isfinite().all()):
        row = int((~found.isfinite()).nonzero()[0]) // (down * across)
        raise ValueError(f"{owner}: image {row} gives NaN or infinity (look at the image and at the network)")
    return found.view(len(images), down, across)


def spread_occlusion(maps: Tensor, size: int, stride: int, image_size: tuple[int, int]) -> Tensor:
    """An `occlusion_map` pixel by pixel: the mean over the squares that cover it, NaN where none does.

    Args:
        maps: ``(B, h, w)``.
        size: Of the squares.
        stride: Between them.
        image_size: H and W.

    Returns:
        ``(B, H, W)``.
    """
    ones = maps.new_ones(1, 1, size, size)
    total = F.conv_transpose2d(maps[:, None], ones, stride=stride)
    count = F.conv_transpose2d(torch.ones_like(maps[:1, None]), ones, stride=stride)
    mean = torch.where(count > 0, total / count, torch.nan)
    missing = image_size[0] - mean.shape[2], image_size[1] - mean.shape[3]
    return F.pad(mean, (0, missing[1], 0, missing[0]), value=torch.nan)[:, 0]


def check_square(
    owner: str, size: int, stride: int, fill: float | Literal["mean"], score: str, chunk_size: int
) -> None:
    """Raises ValueError for what `occlusion_map` can do with no image."""
    for field, value in (("size", size), ("stride", stride), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{owner}: {field} must be at least 1, got {value}")
    if (isinstance(fill, str) and fill != "mean") or (not isinstance(fill, str) and not 0 <= fill <= 1):
        raise ValueError(f"{owner}: fill must be in [0, 1] or mean, got {fill!r}")
    if score not in get_args(OcclusionScore):
        raise ValueError(f"{owner}: score must be one of {', '.join(get_args(OcclusionScore))}, got {score!r}")
