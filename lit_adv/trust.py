"""Which classes a config may name: those of known packages, as a config may come from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from jsonargparse import set_parsing_settings
from pytorch_lightning.loggers import Logger
from torch import nn

from lit_adv.attacks import Attack, Region
from lit_adv.compose import ConfigError

FLAG = "--allow-any-class"
PACKAGES = (
    *("lit_adv", "torch", "torchvision", "torchmetrics", "sklearn"),
    *("pytorch_lightning", "lightning", "lightning_fabric", "pl_bolts"),
)
# what runs, loads or fetches code when it is called
_NEVER = (
    *("torch.hub", "torch.load", "torch.save", "torch.jit", "torch.package", "torch.serialization", "torch.classes"),
    *("torch.ops", "torch.compile", "torch.export", "torch.multiprocessing", "torch.utils.cpp_extension"),
    *("torch.utils.model_zoo", "torch.distributed.run", "torch.distributed.elastic", "torch.distributed.launcher"),
    *("torch.testing", "torch.onnx", "sklearn.datasets", "sklearn.utils", "lightning.app"),
    *("pytorch_lightning.cli", "lightning.pytorch.cli", "lit_adv.cli", "lit_adv.app", "lit_adv.models.weights"),
)
# whose classes the program has at hand once somebody's own module is imported
_BASES = (pl.LightningModule, pl.LightningDataModule, pl.Callback, Logger, Attack, Region, nn.Module)


@contextmanager
def only_known_classes(named: Iterable[str], allow_any: bool) -> Iterator[None]:
    """Within the block, the parser imports nothing but classes of known packages.

    Classes that the program around has imported itself, such as the user's own where Python code calls lit_adv, are
    known as well.

    Args:
        named: The classes that the config names.
        allow_any: Take all of `named`, whatever they are.

    Raises:
        ConfigError: A class of another package is named.
    """
    own = [name for name in imported_classes() if name.partition(".")[0] not in PACKAGES]
    # the parser looks at what is found through ${...} once it is found
    named = [name for name in named if _is_path(name)]
    if not allow_any:
        for name in named:
            if not _is_known(name) and name not in own:
                raise ConfigError(refusal(name))
    extra = [*own, *(name for name in named if allow_any and not _is_known(name))]
    # a class may be named where it is defined, not where it is imported from
    extra += [name.rpartition(".")[0] for name in named if allow_any and not _is_known(name) and "." in name]
    extra = [name for name in extra if _is_path(name) and name.split(".")[0] != "jsonargparse"]
    set_parsing_settings(import_path_denylist=["*", *_NEVER], import_path_allowlist=[*PACKAGES, *extra])
    try:
        yield
    finally:
        # for all that follows in this process
        set_parsing_settings(import_path_denylist=extra)


def refusal(name: str) -> str:
    """The message for a class that is not known."""
    package = name.partition(".")[0]
    what = "is not one that a config may name" if package in PACKAGES else f"is of {package}, which is no known package"
    return (
        f"class_path: {name} {what}, and nothing of it was imported (add {FLAG} if you trust the config and that code; "
        f"known are {', '.join(PACKAGES)})"
    )


def refused_in(message: str) -> str | None:
    """The class whose import the parser refused, by its report."""
    found = re.search(r"Importing '([^']+)' is not allowed", message)
    return None if found is None else found[1]


def imported_classes() -> Iterator[str]:
    """The names of all classes of the kinds that configs name which have been imported."""
    waiting: list[Any] = list(_BASES)
    seen = set()
    while waiting:
        for subclass in type.__subclasses__(waiting.pop()):
            if subclass not in seen:
                seen.add(subclass)
                waiting.append(subclass)
                yield f"{subclass.__module__}.{subclass.__qualname__}"


def _is_known(name: str) -> bool:
    parts = name.split(".")
    beginnings = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return not beginnings.isdisjoint(PACKAGES) and beginnings.isdisjoint(_NEVER)


def _is_path(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
