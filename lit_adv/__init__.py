"""Craft, attribute, defend against and explain adversarial images with PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_adv.evaluation import Evaluation, evaluate
    from lit_adv.masking import Diagnosis, diagnose

__version__ = "0.1.0"
__all__ = ["Diagnosis", "Evaluation", "diagnose", "evaluate"]


def __getattr__(name: str) -> Any:
    # on first use, so that importing a room does not load the others
    if name in __all__:
        from lit_adv import evaluation, masking

        return getattr(evaluation if hasattr(evaluation, name) else masking, name)
    raise AttributeError(f"module 'lit_adv' has no attribute {name!r}")
