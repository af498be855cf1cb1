"""Adversarial attacks in plain torch: ``attack(model, images, labels)`` gives adversarial images."""

from lit_adv.attacks import regions
from lit_adv.attacks.attack import Attack, AttackResult
from lit_adv.attacks.carlini_wagner import CarliniWagnerL2, CarliniWagnerLinf
from lit_adv.attacks.deepfool import DeepFool
from lit_adv.attacks.gradient import BIM, FGM, FGSM, PGD
from lit_adv.attacks.patch import BoundedPatch
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.regions import Center, Frame, Mask, RandomPatch, RandomPixels, Region

__all__ = [
    "BIM",
    "FGM",
    "FGSM",
    "PGD",
    "Attack",
    "AttackResult",
    "BoundedPatch",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "Center",
    "DeepFool",
    "Frame",
    "Mask",
    "Radius",
    "RandomPatch",
    "RandomPixels",
    "Region",
    "regions",
]
