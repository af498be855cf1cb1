"""Adversarial attacks in plain torch: ``attack(model, images, labels)`` gives adversarial images."""

from lit_adv.attacks import regions
from lit_adv.attacks.adapters import ARTAttack, FoolboxAttack, TorchattacksAttack
from lit_adv.attacks.apgd import APGD
from lit_adv.attacks.attack import Attack, AttackResult
from lit_adv.attacks.autoattack import AutoAttack
from lit_adv.attacks.carlini_wagner import CarliniWagnerL0, CarliniWagnerL2, CarliniWagnerLinf
from lit_adv.attacks.ddn import DDN
from lit_adv.attacks.deepfool import DeepFool
from lit_adv.attacks.ead import EAD
from lit_adv.attacks.fab import FAB
from lit_adv.attacks.fmn import FMN
from lit_adv.attacks.generated import GeneratedPerturbation
from lit_adv.attacks.gradient import BIM, FGM, FGSM, FGVM, ILLC, MIFGSM, PGD, RandFGSM
from lit_adv.attacks.jsma import JSMA
from lit_adv.attacks.kl_pgd import KLPGD
from lit_adv.attacks.lbfgs import LBFGS
from lit_adv.attacks.noise import RandomNoise, SemiRandomNoise
from lit_adv.attacks.noise_levels import noise_at_snr
from lit_adv.attacks.onepixel import OnePixel
from lit_adv.attacks.patch import AdversarialPatch, BoundedPatch, LaVAN
from lit_adv.attacks.pgap import FPGAP, PGAP
from lit_adv.attacks.radius import Radius
from lit_adv.attacks.random_search import RandomSearch
from lit_adv.attacks.regions import Center, Frame, Mask, RandomPatch, RandomPixels, Region
from lit_adv.attacks.rubbish import ClassImage, MapElites, RubbishImages
from lit_adv.attacks.square import Square
from lit_adv.attacks.substitute import Oracle, SubstituteModel
from lit_adv.attacks.temperature import AtTemperature
from lit_adv.attacks.traits import attack_family, linf_budget
from lit_adv.attacks.transfer import EnsembleTransfer
from lit_adv.attacks.transferability import TransferResult, random_targets, transfer
from lit_adv.attacks.universal import UniversalPerturbation, label_histogram

__all__ = [
    "APGD",
    "BIM",
    "DDN",
    "EAD",
    "FAB",
    "FGM",
    "FGSM",
    "FGVM",
    "FMN",
    "FPGAP",
    "ILLC",
    "KLPGD",
    "JSMA",
    "LBFGS",
    "MIFGSM",
    "PGAP",
    "PGD",
    "ARTAttack",
    "AdversarialPatch",
    "AtTemperature",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "BoundedPatch",
    "CarliniWagnerL0",
    "CarliniWagnerL2",
    "CarliniWagnerLinf",
    "Center",
    "ClassImage",
    "DeepFool",
    "EnsembleTransfer",
    "FoolboxAttack",
    "Frame",
    "GeneratedPerturbation",
    "LaVAN",
    "MapElites",
    "Mask",
    "OnePixel",
    "Oracle",
    "Radius",
    "RandFGSM",
    "RandomNoise",
    "RandomPatch",
    "RandomPixels",
    "RandomSearch",
    "Region",
    "RubbishImages",
    "SemiRandomNoise",
    "Square",
    "SubstituteModel",
    "TorchattacksAttack",
    "TransferResult",
    "UniversalPerturbation",
    "attack_family",
    "label_histogram",
    "linf_budget",
    "noise_at_snr",
    "random_targets",
    "regions",
    "transfer",
]
