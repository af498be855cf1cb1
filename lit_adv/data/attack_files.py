"""Attacks in files: what was fitted once is used again, from Python or from a config."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_adv.attacks import Attack, Region
from lit_adv.files import replacing
from lit_adv.models import PerturbationNetwork
from lit_adv.models.weights import read_file

_KEY = "attack"


def save_attack(attack: Attack, path: str | Path) -> None:
    """Writes an attack to a file, whole or not at all: tensors as tensors, all else as JSON; nothing is pickled.

    Args:
        attack: Any attack whose fields are numbers, text, tensors, or attacks and regions of such.
        path: Ends in `.safetensors`; its folder is made if it is missing.

    Raises:
        ValueError: The path ends otherwise, or a field cannot be written, such as a network.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"save_attack: path must end in .safetensors, got '{path}'")
    text, tensors = pack(attack)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _KEY: text})


def load_attack(path: str) -> Attack:
    """The attack in a file of `save_attack` or in a checkpoint of a task that trains one, with its tensors on the CPU.

    In a config it stands for the attack: `class_path: lit_adv.data.load_attack`, `init_args: {path: FILE}`.

    Args:
        path: The file: `.safetensors`, or `.ckpt` of `FitAttack` or `PerturbationGenerator`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or holds no attack that there is.
    """
    file = Path(path)
    if file.suffix == ".ckpt":
        return _from_checkpoint(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"load_attack: there is no file '{path}' (make it with `lightning fit` and a config of FitAttack, or with"
            " save_attack)"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(_KEY)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"load_attack: '{path}' is truncated or not a safetensors file (copy it or fit the attack again)"
        ) from error
    if text is None:
        raise ValueError(f"load_attack: '{path}' holds no attack (it must come from save_attack)")
    try:
        return unpack(text, tensors)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"load_attack: '{path}' holds no attack that can be made: {error}") from error


def pack(attack: Attack) -> tuple[str, dict[str, Tensor]]:
    """An attack as JSON and tensors.

    Raises:
        ValueError: A field cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    return json.dumps(_plain(attack, "", tensors)), tensors


def unpack(text: str, tensors: dict[str, Tensor]) -> Attack:
    """The attack of `pack`.

    Raises:
        ValueError: It is not one, or its class or a field's value is not valid.
        KeyError: A tensor is missing.
    """
    attack = _made(json.loads(text), tensors)
    if not isinstance(attack, Attack):
        raise ValueError(f"it must be an attack, got {type(attack).__name__}")
    return attack


def _from_checkpoint(path: str) -> Attack:
    how = "make it with `lightning fit` and a config of FitAttack or PerturbationGenerator"
    content = read_file(path, "load_attack", how).get("attack")
    if content is None:
        raise ValueError(f"load_attack: '{path}' holds no attack ({how})")
    try:
        return unpack(*content)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"load_attack: '{path}' holds no attack that can be made: {error}") from error


def _plain(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The value in JSON's terms; a mapping with one key, the kind, is all that is no number, text or list."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value)  # a Radius is the number it holds
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{place}.{number}", tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Tensor):
        # a clone, as safetensors refuses tensors that share memory
        tensors[place] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(value, PerturbationNetwork):
        for name, tensor in value.state_dict().items():
            tensors[f"{place}.{name}"] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"generator": value.spec, "place": place}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _plain(item, f"{place}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, Attack | Region) and dataclasses.is_dataclass(value):
        dot = f"{place}." if place else ""
        fields = {
            field.name: _plain(getattr(value, field.name), f"{dot}{field.name}", tensors)
            for field in dataclasses.fields(value)
        }
        return {"class": type(value).__name__, "fields": fields}
    raise ValueError(
        f"save_attack: {place or 'attack'} must be a number, text, tensor, attack or region to be written, got"
        f" {type(value).__name__} (save a network by itself, and make the attack with it anew)"
    )


def _made(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_made(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, wanted in (("tuple", list), ("tensor", str), ("generator", dict), ("dict", dict)):
        if kind in value and not isinstance(value[kind], wanted):
            raise ValueError(f"what is a {kind} is damaged, got {value[kind]!r:.60}")
    if "tuple" in value:
        return tuple(_made(item, tensors) for item in value["tuple"])
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "generator" in value:
        place = f"{value['place']}."
        state = {name.removeprefix(place): tensor for name, tensor in tensors.items() if name.startswith(place)}
        network = PerturbationNetwork(**value["generator"])
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the generator's weights do not fit it: {error}") from error
        return network.eval()
    if "dict" in value:
        return {key: _made(item, tensors) for key, item in value["dict"].items()}
    # a class that has been imported, never one that the file would have imported
    known = {cls.__name__: cls for root in (Attack, Region) for cls in _subclasses(root)}
    if not isinstance(value.get("class"), str) or not isinstance(value.get("fields"), dict):
        raise ValueError(f"an attack or a region must have a class and fields, got {', '.join(map(str, value))}")
    if value["class"] not in known:
        raise ValueError(f"there is no attack or region {value['class']!r} (import the module that defines it)")
    return known[value["class"]](**{name: _made(item, tensors) for name, item in value["fields"].items()})


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
