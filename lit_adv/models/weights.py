"""Reading weights from files: safely, and with an error that says what to do."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from lit_adv.models.exported_files import EXPORTED, read_exported

StateDict = dict[str, Tensor]


def read_file(path: str | Path, owner: str, how_to_get: str) -> dict[str, Any]:
    """Whatever dictionary a weights file holds, read without running code from it.

    Args:
        path: A `.safetensors` file, or anything `torch.load(weights_only=True)` reads.
        owner: Who asks; opens the error message.
        how_to_get: What to do where the file is missing; closes the error message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, needs pickled code, or holds no dictionary.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{owner}: there is no weights file '{path}' ({how_to_get})")
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch names what it refuses to build or to run; a damaged file can look the same
        what = "holds" if "unsupported" in str(error).lower() else "may hold"
        raise ValueError(
            f"{owner}: '{path}' cannot be loaded safely, since it {what} pickled objects that may run code"
            " (save a plain state_dict, `torch.save(model.state_dict(), path)`, or a safetensors file)"
        ) from error
    # a damaged pickle stops its reader in any way: KeyError, IndexError, EOFError, UnicodeDecodeError, ...
    except Exception as error:
        raise ValueError(_damaged(owner, path)) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{owner}: '{path}' must hold a state_dict, got {type(content).__name__}"
            " (save it with `torch.save(model.state_dict(), path)`)"
        )
    return content


class Weights(NamedTuple):
    """What a file says of a network.

    Attributes:
        state: Tensors by name, without the prefixes that wrappers leave.
        mean: What is subtracted from images in [0, 1], one number a channel or one for all; None where it is not said.
        std: What they are divided by.
    """

    state: StateDict
    mean: Tensor | None
    std: Tensor | None


def read_weights(path: str | Path, owner: str) -> Weights:
    """The weights in a file and its normalisation: ours, a plain state_dict, RobustBench's and those of others.

    A state_dict may lie in ``state_dict``, ``model_state_dict``, ``net``, ``model`` or ``last`` of what was saved; all
    of its keys may have a prefix ``module.``, ``model.``, ``network.``, ``net.`` or ``_orig_mod.``. Normalisation is
    taken out of it: ``mu`` and ``sigma``, or ``mean`` and ``std``, by themselves or in a module ``normalize`` and the
    like.

    Args:
        path: `.safetensors`, `.pt2`, `.onnx`, or anything `torch.load(weights_only=True)` reads.
        owner: Who asks; opens the error message.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, unsafe, or holds no tensors.
        ImportError: It is an ONNX file, and ONNX is not installed.
    """
    if Path(path).suffix in EXPORTED:
        tensors: Mapping[str, Any] = read_exported(Path(path), owner)[0]
    else:
        tensors = _unwrapped(read_file(path, owner, "check the path"))
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{owner}: '{path}' holds no state_dict of tensors (save `model.state_dict()`)")
    state: StateDict = {str(key): value for key, value in tensors.items()}
    found: dict[str, Tensor] = {}
    before = -1
    while before != len(state) + sum(map(len, state)):
        before = len(state) + sum(map(len, state))
        for key in [key for key in state if key in _STATISTICS]:
            found[_STATISTICS[key]] = state.pop(key).flatten().float()
        for prefix in _PREFIXES:
            if state and all(key.startswith(prefix) for key in state):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
    return Weights(_renamed(state), found.get("mean"), found.get("std"))


def read_state_dict(path: str | Path, owner: str) -> StateDict:
    """The tensors that `read_weights` finds, without the normalisation."""
    return read_weights(path, owner).state


def imagenet_state_dict(name: str, owner: str) -> StateDict:
    """Torchvision's official ImageNet weights (IMAGENET1K_V1) of an architecture, downloaded once, hash checked.

    Args:
        name: Torchvision's name of the architecture.
        owner: Who asks; opens the error message.

    Raises:
        RuntimeError: The download failed, or what came is not the official file.
    """
    weights = get_model_weights(name)["IMAGENET1K_V1"]
    target = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    try:
        state: StateDict = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except Exception as error:
        raise RuntimeError(
            f"{owner}: cannot get the ImageNet weights of {name}: {error}"
            f" (download {weights.url} to '{target}', replacing what may be there, or give a file's path as weights)"
        ) from error
    return _renamed(state)


def differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], most: int = 3) -> str:
    """The first keys and shapes in which a state_dict differs from the one expected; empty where it fits.

    BatchNorm's `num_batches_tracked` may be missing: old files lack it, and nothing here reads it.
    """
    wrong = [
        f"{key} is {tuple(given[key].shape)} and should be {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    wrong += [f"{key} is missing" for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    wrong += [f"{key} is not expected" for key in given if key not in expected]
    more = f", and {len(wrong) - most} more" if len(wrong) > most else ""
    return ", ".join(wrong[:most]) + more


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = isinstance(content.get("classifier"), Mapping)
    for key in _NESTS:
        nested = content.get(key)
        if isinstance(nested, Mapping):
            # a task's checkpoint may hold other networks beside the classifier
            own = {name: value for name, value in nested.items() if ours and str(name).startswith("model.")}
            return own or _unwrapped(nested)
    return content


def _renamed(state: StateDict) -> StateDict:
    # torchvision's published DenseNet files are older than its module names: norm.1 there is norm1 here
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key): t for key, t in state.items()}


def _damaged(owner: str, path: str | Path) -> str:
    return f"{owner}: '{path}' is truncated or not a weights file (copy, download or train it again)"


_NESTS = ("state_dict", "model_state_dict", "net", "model", "last")
_PREFIXES = ("module.", "model.", "network.", "net.", "_orig_mod.")
_MODULES = ("", "normalize.", "normalizer.", "normalization.", "norm_layer.")
_STATISTICS = {
    f"{module}{name}": field
    for module in _MODULES
    for name, field in (("mu", "mean"), ("mean", "mean"), ("sigma", "std"), ("std", "std"))
}
