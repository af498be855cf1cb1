"""A description of an attack or a region that is the same in every process, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def fingerprint(described: object) -> str:
    """SHA-256 over class, fields and tensor bytes of a dataclass, as 64 hexadecimal digits.

    A network counts with its architecture, parameters and buffers; its mode and device do not matter.

    Raises:
        TypeError: A field holds something that has no stable description.
    """
    digest = hashlib.sha256()
    _feed(digest, described)
    return digest.hexdigest()


def _feed(digest: Any, value: object) -> None:
    if isinstance(value, Tensor):
        stored = value.detach().cpu().contiguous()
        digest.update(f"tensor {stored.dtype} {tuple(stored.shape)} ".encode())
        digest.update(stored.flatten().view(torch.uint8).numpy().tobytes() if stored.numel() else b"")
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, int):
        digest.update(f"int {value};".encode())  # Center(1) is one pixel, Center(1.0) the whole side
    elif isinstance(value, float):
        digest.update(f"float {float(value).hex()};".encode())  # a Radius is the same as the float it holds
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, dict) and all(isinstance(key, str) for key in value):
        digest.update(f"mapping {len(value)};".encode())
        for key in sorted(value):
            _feed(digest, key)
            _feed(digest, value[key])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__module__}.{type(value).__qualname__}(".encode())
        for field in dataclasses.fields(value):
            digest.update(f"{field.name}=".encode())
            held = getattr(value, field.name)
            # a field that is a float may be given as 100 or 100.0; where both are allowed, they mean different things
            if type(held) is int and "int" not in str(field.type):
                held = float(held)
            _feed(digest, held)
        digest.update(b")")
    elif isinstance(value, nn.Module):
        digest.update(f"module {type(value).__module__}.{type(value).__qualname__} {value!r}(".encode())
        # named_buffers as well: buffers that are not saved may change the output all the same
        held = {**dict(value.named_buffers()), **value.state_dict()}
        for name in sorted(held):
            digest.update(f"{name}=".encode())
            _feed(digest, held[name])
        digest.update(b")")
    else:
        raise TypeError(
            f"{type(value).__name__} has no stable fingerprint (use numbers, strings, tensors, networks, dataclasses)"
        )
