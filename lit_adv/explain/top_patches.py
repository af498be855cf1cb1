"""The patches of images that excite a channel most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from lit_adv.explain.layers import activations
from lit_adv.explain.receptive_field import ReceptiveField, receptive_field


@dataclass(frozen=True)
class Patches:
    """The most exciting patches of each channel, the strongest first; n is less than k where there are too few.

    Attributes:
        values: ``(C, n)``, activations; -inf where there is no patch.
        images: ``(C, n)`` int64, numbers of the images; -1 where there is no patch.
        units: ``(C, n, 2)`` int64, row and column in the layer's maps.
        boxes: ``(C, n, 4)`` int64, receptive fields as `ReceptiveField.boxes` gives them, not cut at the image's edge.
        patches: ``(C, n, channels, h, w)``, their pixels; ``fill`` outside the image. Where the field is higher or
            wider than the image, the whole image in that direction.
    """

    values: Tensor
    images: Tensor
    units: Tensor
    boxes: Tensor
    patches: Tensor

    def best(self, k: int) -> Patches:
        """The k strongest of each channel; of equally strong ones those of earlier images come first."""
        by_image = self.images.argsort(dim=1, stable=True)
        order = by_image.gather(1, self.values.gather(1, by_image).argsort(dim=1, descending=True, stable=True))[:, :k]
        return Patches(*(_along(getattr(self, field.name), order) for field in fields(self)))

    @staticmethod
    def merged(parts: Sequence[Patches], k: int) -> Patches:
        """The k strongest of several, which are of the same layer and channels, and of different images."""
        if not parts:
            raise ValueError("Patches: parts must hold at least one part, got none (pass at least one image)")
        joined = (torch.cat([getattr(part, field.name) for part in parts], 1) for field in fields(Patches))
        return Patches(*joined).best(k)


def top_patches(
    model: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    layer: str,
    channels: Sequence[int] | None = None,
    *,
    k: int = 9,
    per_image: int = 1,
    max_overlap: float = 0.5,
    fill: float = 0.5,
) -> Patches:
    """The k patches that excite each channel of a layer most (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.1).

    Batch by batch, keeping no more than k patches a channel. A patch is the receptive field of the unit, see
    `receptive_field`; deep in a network it is the whole image, so that 9 of each of 2048 channels are 11 GB of images
    of 224 x 224 pixels, and five times as much while batches are compared: name the ``channels``.

    Args:
        model: From images to anything; it is called in eval mode and left as it was.
        batches: Images ``(B, C, H, W)`` in [0, 1] of one size, or tuples that begin with them; images are numbered in
            the order in which they come.
        layer: Its name, see ``named_modules``; its output must be maps.
        channels: Of the layer; None takes all.
        k: How many patches.
        per_image: Most of them from one image; 1 as in the paper.
        max_overlap: Of two patches of an image whose boxes, cut at the image's edge, overlap by more than this share
            of their union, only the stronger one counts.
        fill: Colour outside the image.

    Raises:
        ValueError: An argument is out of range, there is no image or layer, or no receptive field.
    """
    check_search("top_patches", k, per_image, max_overlap, fill)
    found: Patches | None = None
    field: ReceptiveField | None = None
    count = 0
    for batch in batches:
        images = batch if isinstance(batch, Tensor) else batch[0]
        if not len(images):
            continue
        if field is None:
            field = receptive_field(model, layer, images.shape[1:])
        new = batch_patches(model, images, layer, channels, field, k, per_image, max_overlap, fill, first=count)
        count += len(images)
        found = new if found is None else Patches.merged([found, new], k)
    if found is None:
        raise ValueError("top_patches: batches must hold at least one image, got none")
    return found


def batch_patches(
    model: nn.Module,
    images: Tensor,
    layer: str,
    channels: Sequence[int] | None,
    field: ReceptiveField,
    k: int,
    per_image: int,
    max_overlap: float,
    fill: float,
    first: int = 0,
) -> Patches:
    """`top_patches` of one batch, whose first image has the number ``first``."""
    maps = activations(model, images, layer)
    if maps.ndim != 4:
        raise ValueError(f"top_patches: layer must give maps (B, C, h, w), got {tuple(maps.shape)} from {layer}")
    if channels is not None:
        wrong = [channel for channel in channels if not 0 <= channel < maps.shape[1]]
        if wrong or not channels:
            got = wrong[0] if wrong else "none"
            raise ValueError(f"top_patches: channels must be in [0, {maps.shape[1]}) in {layer}, got {got}")
        maps = maps[:, list(channels)]
    values, units = _peaks(maps.float(), field, images.shape[2:], per_image, max_overlap)
    # (C, B * per_image), image by image
    rows = torch.arange(len(images), device=maps.device)[:, None, None].expand(values.shape)
    values, rows, units = (part.transpose(0, 1).flatten(1, 2) for part in (values, rows, units))
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    values, rows, units = (_along(part, order) for part in (values, rows, units))
    boxes = field.boxes(units.flatten(0, 1)).view(*units.shape[:2], 4)
    patches = _crops(images, rows.flatten(), boxes.flatten(0, 1), fill)
    missing = values == -torch.inf
    return Patches(
        values.cpu(),
        torch.where(missing, -1, rows + first).cpu(),
        units.cpu(),
        boxes.cpu(),
        patches.view(*values.shape, *patches.shape[1:]).cpu(),
    )


def check_search(owner: str, k: int, per_image: int, max_overlap: float, fill: float) -> None:
    """Raises ValueError for numbers that `top_patches` does not take."""
    for name, value in (("k", k), ("per_image", per_image)):
        if value < 1:
            raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
    for name, share in (("max_overlap", max_overlap), ("fill", fill)):
        if not 0 <= share <= 1:
            raise ValueError(f"{owner}: {name} must be in [0, 1], got {share}")


def _peaks(
    maps: Tensor, field: ReceptiveField, size: Sequence[int], per_image: int, max_overlap: float
) -> tuple[Tensor, Tensor]:
    """The strongest units of each map, greedily, without those that overlap a stronger one.

    Returns:
        Values ``(B, C, n)``, -inf where nothing is left, and units ``(B, C, n, 2)``.
    """
    height, width = maps.shape[2:]
    remaining = maps.flatten(2).clone()
    lines = []
    for place, count in enumerate((height, width)):
        first = torch.arange(count, device=maps.device) * field.stride[place] + field.start[place]
        lines.append((first.clamp(0, size[place]), (first + field.size[place]).clamp(0, size[place])))
    values, units = [], []
    for number in range(min(per_image, height * width)):
        value, flat = remaining.max(2)
        row, column = flat // width, flat % width
        values.append(value)
        units.append(torch.stack([row, column], 2))
        if number + 1 < per_image:
            shared = own = other = torch.ones((), dtype=torch.int64, device=maps.device)
            for (low, high), chosen, shape in zip(lines, (row, column), ((height, 1), (1, width)), strict=True):
                a, b = low[chosen][..., None], high[chosen][..., None]
                overlap = (torch.minimum(b, high) - torch.maximum(a, low)).clamp(min=0)
                shared = shared * overlap.unflatten(2, shape)
                own = own * (b - a).unflatten(2, (1, 1))
                other = other * (high - low).view(shape)
            taken = shared > max_overlap * (own + other - shared)
            remaining.masked_fill_(taken.flatten(2), -torch.inf)
            # itself too, where its field lies outside the image
            remaining.scatter_(2, flat[..., None], -torch.inf)
    return torch.stack(values, 2), torch.stack(units, 2)


def _crops(images: Tensor, rows: Tensor, boxes: Tensor, fill: float) -> Tensor:
    sizes = []
    starts = []
    for place, side in enumerate(images.shape[2:]):
        size = int((boxes[0, place + 2] - boxes[0, place]).item())
        sizes.append(min(size, side))
        starts.append(boxes[:, place] if size <= side else torch.zeros_like(boxes[:, place]))
    crops = images.new_full((len(rows), images.shape[1], *sizes), fill)
    for crop, row, *corner in zip(crops, rows.tolist(), starts[0].tolist(), starts[1].tolist(), strict=True):
        ends = [
            (max(0, first), min(side, first + size))
            for first, size, side in zip(corner, sizes, images.shape[2:], strict=True)
        ]
        if all(low < high for low, high in ends):
            (top, bottom), (left, right) = ends
            y, x = corner
            crop[:, top - y : bottom - y, left - x : right - x] = images[row, :, top:bottom, left:right]
    return crops


def _along(values: Tensor, order: Tensor) -> Tensor:
    """What stands at ``(C, n)`` places of the second dimension."""
    index = order.view(*order.shape, *[1] * (values.ndim - 2)).expand(*order.shape, *values.shape[2:])
    return values.gather(1, index)
