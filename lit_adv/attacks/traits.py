"""What an attack's class and fields say about it: the family it belongs to, and the budget it was given."""

from __future__ import annotations

from lit_adv.attacks.apgd import APGD
from lit_adv.attacks.attack import Attack
from lit_adv.attacks.autoattack import AutoAttack
from lit_adv.attacks.generated import GeneratedPerturbation
from lit_adv.attacks.gradient import FGM, FGSM, FGVM, RandFGSM, SteepestDescent
from lit_adv.attacks.noise import RandomNoise, SemiRandomNoise
from lit_adv.attacks.norms import Linf
from lit_adv.attacks.patch import AdversarialPatch, PlacedPatch
from lit_adv.attacks.pgap import SSIMSteps
from lit_adv.attacks.random_search import RandomSearch
from lit_adv.attacks.square import Square
from lit_adv.attacks.substitute import SubstituteModel
from lit_adv.attacks.temperature import AtTemperature
from lit_adv.attacks.transfer import EnsembleTransfer
from lit_adv.attacks.universal import UniversalPerturbation


def attack_family(attack: Attack) -> str:
    """The family of an attack, by what kind of perturbation it makes and how.

    That of the inner attack for `AtTemperature`; else the first that holds: what the class itself says
    (`Attack.family`); ``noise``; ``patch``; ``perceptual``; ``universal``; ``generated`` (drawn by a network);
    ``black_box`` (the network is asked for answers at most); ``sparse`` (few pixels: the L0 norm); ``minimal_norm``
    (looks for the smallest perturbation); ``one_step`` and ``iterative`` gradient methods with a budget; ``other``.
    """
    if isinstance(attack, AtTemperature):
        return attack_family(attack.attack)
    if attack.family is not None:
        return attack.family
    for name, kinds in _KINDS.items():
        if isinstance(attack, kinds):
            return name
    if getattr(attack, "norm", None) == "l0":
        return "sparse"
    if attack.minimal_norm:
        return "minimal_norm"
    if isinstance(attack, FGSM | FGM | FGVM | RandFGSM):
        return "one_step"
    return "iterative" if isinstance(attack, SteepestDescent | APGD | AutoAttack) else "other"


def linf_budget(attack: Attack) -> float | None:
    """The Linf radius in (0, 1) that an attack was given, in pixel units of [0, 1]; None where it has none.

    Radii of other norms are in other units, and a radius of 1 bounds nothing. An attack that looks for a minimal
    perturbation inside such a ball (the bounded CW-Linf of Souri et al. 2021) has the ball's.
    """
    budget = attack._budget()
    if budget is None or not isinstance(budget[0], Linf) or not 0 < budget[1] < 1:
        return None
    return float(budget[1])


_KINDS: dict[str, tuple[type[Attack], ...]] = {
    "noise": (RandomNoise, SemiRandomNoise),
    "patch": (PlacedPatch, AdversarialPatch),
    "perceptual": (SSIMSteps,),
    "universal": (UniversalPerturbation,),
    "generated": (GeneratedPerturbation,),
    "black_box": (Square, RandomSearch, SubstituteModel, EnsembleTransfer),
}
