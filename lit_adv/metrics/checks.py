"""What every metric of this package asks of its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def check_names(owner: str, field: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return `names` as a tuple.

    Args:
        owner: Name of the calling class, for the message.
        field: Name of its argument, for the message.
        names: One or more different names.

    Raises:
        ValueError: If there is no name, a name occurs twice, or a single string was given.
    """
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"{owner}: {field} must be one or more different names, got {names!r} (pass a list of names)")
    return tuple(names)


def check_tensors(owner: str, tensors: Mapping[str, Any]) -> None:
    """Refuses what holds no numbers that can be computed with together.

    Args:
        owner: Name of the caller, for the message.
        tensors: By the name of the argument.

    Raises:
        TypeError: One is no tensor.
        ValueError: One is sparse, lies on the device meta, or on another device than the first.
    """
    first = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{owner}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            found = "on the device meta" if tensor.layout == torch.strided else f"of layout {tensor.layout}"
            raise ValueError(f"{owner}: {name} must be a dense tensor that holds values, got one {found}")
        first = first or (name, tensor.device)
        if tensor.device != first[1]:
            raise ValueError(
                f"{owner}: {name} must be on the device of {first[0]}, {first[1]}, got {tensor.device} (move one)"
            )


def check_indices(owner: str, columns: Mapping[str, Tensor], ranges: Mapping[str, tuple[int, str]]) -> None:
    """Refuse anything but integer vectors of one length with values in range; empty vectors pass.

    Reads the device once, however many columns there are.

    Args:
        owner: Name of the calling class, for the message.
        columns: Name to (B,) tensor of any integer dtype.
        ranges: Name of a column to (n, remedy): its values must be in [0, n).

    Raises:
        TypeError: If a column is not a tensor of integers.
        ValueError: If a column is not a vector, two lengths differ, or a value is out of range.
    """
    first = next(iter(columns))
    for name, column in columns.items():
        if not isinstance(column, Tensor) or column.dtype not in _INTEGERS:
            got = f"{column.dtype} tensor" if isinstance(column, Tensor) else type(column).__name__
            raise TypeError(f"{owner}: {name} must be a tensor of integers, got {got} (take argmax(1) of logits)")
        if column.ndim != 1:
            raise ValueError(f"{owner}: {name} must have shape (B,), got {tuple(column.shape)} (one index per image)")
        if len(column) != len(columns[first]):
            raise ValueError(
                f"{owner}: {name} must be as long as {first}, got {len(column)} and {len(columns[first])} "
                "(one row per image in both)"
            )
    check_tensors(owner, columns)
    if not ranges or not len(columns[first]):
        return
    extremes = torch.stack([extreme.long() for name in ranges for extreme in columns[name].aminmax()]).tolist()
    for i, (name, (size, remedy)) in enumerate(ranges.items()):
        low, high = extremes[2 * i : 2 * i + 2]
        if low < 0 or high >= size:
            raise ValueError(f"{owner}: {name} must be in [0, {size}), got {low if low < 0 else high} ({remedy})")


def check_pairs(owner: str, images: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless all are floating-point images ``(B, C, H, W)`` of one shape; B may be 0."""
    first = next(iter(images))
    for name, batch in images.items():
        if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.is_floating_point() or 0 in batch.shape[1:]:
            got = f"{batch.dtype} of shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else type(batch).__name__
            raise ValueError(f"{owner}: {name} must be floating-point images (B, C, H, W) in [0, 1], got {got}")
        if batch.shape != images[first].shape:
            raise ValueError(
                f"{owner}: {name} must have the shape of {first}, got {tuple(batch.shape)} and "
                f"{tuple(images[first].shape)} (the same images in both)"
            )
    check_tensors(owner, images)


def ratio_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating dtype of `device`: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
