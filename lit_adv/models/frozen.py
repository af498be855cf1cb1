"""Networks that must not change: freezing them, and telling whether two are the same."""

import hashlib
from functools import partial
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze_(module: ModuleT) -> ModuleT:
    """Freezes a network in place: no parameter gradients, eval mode, and `train()` no longer changes that.

    Gradients still reach the input. Without the last part a parent's `train()` would let BatchNorm move its running
    statistics, whatever `requires_grad` says.

    Returns:
        The module itself.
    """
    module.requires_grad_(False).eval()
    # a partial, unlike a lambda, survives pickling and refers to the copy after a deepcopy
    module.train = partial(_stay, module)  # type: ignore[method-assign]
    return module


def fingerprint(module: nn.Module) -> str:
    """SHA-256, as hex, of a network: every parameter and buffer (name, shape, dtype, bytes) and the architecture.

    Two networks with the same fingerprint compute the same function in eval mode; device and mode do not matter.
    """
    digest = hashlib.sha256(repr(module).encode())
    # named_buffers as well: buffers that are not saved may change the output all the same
    tensors = {**dict(module.named_buffers()), **module.state_dict()}
    for name in sorted(tensors):
        tensor = tensors[name]
        if not isinstance(tensor, torch.Tensor):
            digest.update(f"{name}:{tensor!r}".encode())
            continue
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stay(module: ModuleT, mode: bool = True) -> ModuleT:
    return module
