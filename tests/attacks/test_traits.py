"""The family and the budget of every attack there is."""

from dataclasses import dataclass, fields

import pytest

import lit_adv.attacks as attacks
from lit_adv.attacks import (
    FGM,
    FGSM,
    FGVM,
    FMN,
    PGD,
    Attack,
    DeepFool,
    FoolboxAttack,
    LaVAN,
    attack_family,
    linf_budget,
)

FAMILIES = {
    "noise": "RandomNoise SemiRandomNoise",
    "one_step": "FGSM FGM FGVM RandFGSM AtTemperature",
    "iterative": "BIM MIFGSM ILLC PGD KLPGD APGD AutoAttack",
    "minimal_norm": "DeepFool CarliniWagnerL2 CarliniWagnerLinf LBFGS EAD DDN FMN FAB",
    "sparse": "CarliniWagnerL0 JSMA OnePixel",
    "patch": "BoundedPatch LaVAN AdversarialPatch",
    "black_box": "Square RandomSearch SubstituteModel EnsembleTransfer",
    "perceptual": "PGAP FPGAP",
    "universal": "UniversalPerturbation",
    "generated": "GeneratedPerturbation",
    "other": "FoolboxAttack TorchattacksAttack ARTAttack",
}
EXAMPLES = [
    value.example()
    for value in (getattr(attacks, name) for name in attacks.__all__)
    if isinstance(value, type) and issubclass(value, Attack) and value is not Attack
]


def test_every_attack_has_its_family():
    found = {type(attack).__name__: attack_family(attack) for attack in EXAMPLES}
    assert found == {name: family for family, names in FAMILIES.items() for name in names.split()}


def test_fields_decide_where_they_change_what_an_attack_is():
    assert attack_family(PGD(norm="l0", eps=5)) == attack_family(FMN(norm="l0")) == "sparse"
    assert attack_family(FoolboxAttack(name="LinfDeepFoolAttack")) == "minimal_norm"


def test_a_class_says_its_family_itself():
    @dataclass(frozen=True, kw_only=True)
    class Mine(PGD):
        family = "mine"

    assert attack_family(Mine()) == "mine"
    assert "family" not in {field.name for field in fields(Mine)}
    assert attack_family(PGD()) == "iterative"


@pytest.mark.parametrize(
    ("attack", "radius"),
    [
        (PGD(eps=8 / 255), 8 / 255),
        (PGD(norm="l2", eps=0.5), None),
        (PGD(eps=0), None),
        (PGD(eps=1), None),
        (FGM(), None),
        (FGVM(norm="raw"), None),
        (DeepFool(norm="linf"), None),
        (LaVAN(), None),
        (attacks.CarliniWagnerLinf(eps=16 / 255), 16 / 255),
        (attacks.BoundedPatch(eps=4 / 255), 4 / 255),
        (attacks.FAB(norm="linf"), None),
        (attacks.SubstituteModel(attack=FGSM(eps=0.25)), 0.25),
    ],
)
def test_only_a_linf_radius_below_1_is_a_budget(attack, radius):
    assert linf_budget(attack) == radius
