"""A guarded bridge to lightning-bolts 0.7.0, which is older than the Lightning that lit_adv runs on.

It can be no dependency, since it declares `pytorch-lightning<2`; get it with `pip install --no-deps
lightning-bolts==0.7.0`. One module that it imports went away in Lightning 2, so that each of its own modules fails to
import unless that one is put back.
"""

import importlib.util
import sys
import warnings
from types import ModuleType

_NUMPY_NAMES = ("object", "bool", "int", "float")


def bolts_available() -> bool:
    """Whether lightning-bolts is installed; imports nothing."""
    return importlib.util.find_spec("pl_bolts") is not None


def import_bolts() -> ModuleType:
    """Imports `pl_bolts` and undoes what the import does to numpy.

    Returns:
        The package `pl_bolts`.

    Raises:
        ModuleNotFoundError: lightning-bolts is not installed.
    """
    if not bolts_available():
        raise ModuleNotFoundError(
            "pl_bolts is not installed (pip install --no-deps lightning-bolts==0.7.0; it declares pytorch-lightning<2)"
        )
    import lightning_utilities.core.apply_func
    import numpy

    shim = ModuleType("pytorch_lightning.utilities.apply_func")
    shim.apply_to_collection = lightning_utilities.core.apply_func.apply_to_collection  # type: ignore[attr-defined]
    sys.modules.setdefault(shim.__name__, shim)
    present = {name: vars(numpy)[name] for name in _NUMPY_NAMES if name in vars(numpy)}
    try:
        with warnings.catch_warnings():
            # three of "this feature is under review" at import
            warnings.simplefilter("ignore")
            return importlib.import_module("pl_bolts")
    finally:
        for name in _NUMPY_NAMES:
            vars(numpy).pop(name, None)
        vars(numpy).update(present)
