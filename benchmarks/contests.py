"""Which attack meets which peers, and with which settings: a table."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import logging
import math
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_adv import attacks

Craft = Callable[[nn.Module, Tensor, Tensor], Tensor]

EPS, STEP = 8 / 255, 2 / 255
LIBRARIES = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "art": "art.attacks.evasion",
    "adv_lib": "adv_lib.attacks",
    "cleverhans": "cleverhans.torch.attacks",
}


@dataclass(frozen=True, kw_only=True)
class Contest:
    """An attack of ours against the same one elsewhere.

    Attributes:
        norm: The norm in which the perturbations are compared.
        ours: The attack; made when it is its turn, so that one that does not exist is one row less.
        peers: For a library the attack that it gets, a function (model, images, labels) -> images.
        targeted: Whether all attack towards the next class: the labels handed over are then targets.
        images: At most so many, for what takes minutes elsewhere.
        remarks: For a library, in what its attack differs.
    """

    norm: str
    ours: Callable[[], attacks.Attack]
    peers: dict[str, Craft] = field(default_factory=dict)
    targeted: bool = False
    images: int | None = None
    remarks: dict[str, str] = field(default_factory=dict)


def installed(libraries: dict[str, str] = LIBRARIES) -> dict[str, str]:
    """Of the libraries those that import, name -> module; says what is missing."""
    # adv_lib imports it for a plot that nobody asks for; it has no wheel
    if "adv_lib" in libraries and "visdom" not in sys.modules and importlib.util.find_spec("visdom") is None:
        sys.modules["visdom"] = types.ModuleType("visdom")
    found = {}
    for name, module in libraries.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
            found[name] = module
        except Exception as error:  # whatever a package does on import
            print(f"without {name}: {type(error).__name__}: {error}", file=sys.stderr)
    logging.getLogger("art").setLevel(logging.ERROR)
    return found


def contests() -> dict[str, Contest]:
    """All contests by name."""
    a = attacks
    return {
        "FGSM": Contest(
            norm="linf",
            ours=lambda: a.FGSM(eps=EPS),
            peers={
                "foolbox": _foolbox("LinfFastGradientAttack", EPS),
                "torchattacks": _torchattacks("FGSM", eps=EPS),
                "art": _art("FastGradientMethod", eps=EPS),
                "cleverhans": _cleverhans("fast_gradient_method", eps=EPS, norm=math.inf, clip_min=0, clip_max=1),
            },
        ),
        "FGM": Contest(
            norm="l2",
            ours=lambda: a.FGM(eps=0.5),
            peers={
                "foolbox": _foolbox("L2FastGradientAttack", 0.5),
                "art": _art("FastGradientMethod", eps=0.5, norm=2),
                "cleverhans": _cleverhans("fast_gradient_method", eps=0.5, norm=2, clip_min=0, clip_max=1),
            },
        ),
        "FGVM": Contest(norm="l2", ours=lambda: a.FGVM(eps=0.5)),
        "RandFGSM": Contest(
            norm="linf",
            ours=lambda: a.RandFGSM(eps=EPS),
            peers={"torchattacks": _torchattacks("RFGSM", eps=EPS, alpha=EPS / 2, steps=1)},
        ),
        "BIM, 10 steps": Contest(
            norm="linf",
            ours=lambda: a.BIM(eps=EPS, step_size=1 / 255, steps=10),
            peers={
                "foolbox": _foolbox("LinfBasicIterativeAttack", EPS, steps=10, abs_stepsize=1 / 255),
                "torchattacks": _torchattacks("BIM", eps=EPS, alpha=1 / 255, steps=10),
                "art": _art("BasicIterativeMethod", eps=EPS, eps_step=1 / 255, max_iter=10),
                "cleverhans": _cleverhans_pgd(EPS, 1 / 255, 10, math.inf, start=False),
            },
        ),
        "ILLC, 10 steps": Contest(
            norm="linf",
            ours=lambda: a.ILLC(eps=EPS, step_size=1 / 255, steps=10),
            peers={"torchattacks": _torchattacks("BIM", least_likely=True, eps=EPS, alpha=1 / 255, steps=10)},
        ),
        "MIFGSM, 10 steps": Contest(
            norm="linf",
            ours=lambda: a.MIFGSM(eps=EPS, steps=10),
            peers={
                "foolbox": _foolbox("LinfMomentumIterativeFastGradientMethod", EPS, steps=10, abs_stepsize=EPS / 10),
                "torchattacks": _torchattacks("MIFGSM", eps=EPS, alpha=EPS / 10, steps=10),
                "art": _art("MomentumIterativeMethod", eps=EPS, eps_step=EPS / 10, max_iter=10),
            },
        ),
        "PGD, 20 steps": Contest(
            norm="linf",
            ours=lambda: a.PGD(eps=EPS, step_size=STEP, steps=20),
            peers={
                "foolbox": _foolbox("LinfProjectedGradientDescentAttack", EPS, steps=20, abs_stepsize=STEP),
                "torchattacks": _torchattacks("PGD", eps=EPS, alpha=STEP, steps=20),
                "art": _art("ProjectedGradientDescentPyTorch", eps=EPS, eps_step=STEP, max_iter=20, num_random_init=1),
                "adv_lib": _adv_lib("pgd_linf", ε=EPS, steps=20, absolute_step_size=STEP),
                "cleverhans": _cleverhans_pgd(EPS, STEP, 20, math.inf, start=True),
            },
        ),
        "KL-PGD, 10 steps": Contest(
            norm="linf",
            ours=lambda: a.KLPGD(eps=EPS, step_size=STEP, steps=10),
            peers={"torchattacks": _torchattacks("TPGD", eps=EPS, alpha=STEP, steps=10)},
        ),
        "PGD L2, 20 steps": Contest(
            norm="l2",
            ours=lambda: a.PGD(norm="l2", eps=0.5, step_size=0.1, steps=20),
            peers={
                "foolbox": _foolbox("L2ProjectedGradientDescentAttack", 0.5, steps=20, abs_stepsize=0.1),
                "torchattacks": _torchattacks("PGDL2", eps=0.5, alpha=0.1, steps=20),
                "art": _art(
                    "ProjectedGradientDescentPyTorch", norm=2, eps=0.5, eps_step=0.1, max_iter=20, num_random_init=1
                ),
                "cleverhans": _cleverhans_pgd(0.5, 0.1, 20, 2, start=True),
            },
        ),
        "APGD, 20 steps": Contest(
            norm="linf",
            ours=lambda: a.APGD(eps=EPS, steps=20, stop_at_success=False),
            peers={
                "torchattacks": _torchattacks("APGD", eps=EPS, steps=20),
                "art": _art(
                    "AutoProjectedGradientDescent",
                    eps=EPS,
                    eps_step=2 * EPS,
                    max_iter=20,
                    nb_random_init=1,
                    loss_type="cross_entropy",
                ),
                "adv_lib": _adv_lib("apgd", eps=EPS, norm=math.inf, n_iter=20, loss_function="ce"),
            },
        ),
        "DeepFool": Contest(
            norm="l2",
            ours=lambda: a.DeepFool(steps=50),
            peers={
                "foolbox": _foolbox("L2DeepFoolAttack", None, steps=50, candidates=10),
                "torchattacks": _torchattacks("DeepFool", steps=50),
                "art": _art("DeepFool", max_iter=50, nb_grads=10, epsilon=0.02),
                "adv_lib": _adv_lib("df", steps=50),
            },
        ),
        "DeepFool Linf": Contest(
            norm="linf",
            ours=lambda: a.DeepFool(norm="linf", steps=50),
            peers={
                "foolbox": _foolbox("LinfDeepFoolAttack", None, steps=50, candidates=10),
                "adv_lib": _adv_lib("df", steps=50, norm=math.inf),
            },
        ),
        "CW L2, 50 steps": Contest(
            norm="l2",
            ours=lambda: a.CarliniWagnerL2(c=1.0, steps=50, search_steps=0, box="tanh", abort_early=False),
            peers={
                "foolbox": _foolbox(
                    "L2CarliniWagnerAttack",
                    None,
                    steps=50,
                    binary_search_steps=1,
                    stepsize=0.01,
                    initial_const=1.0,
                    abort_early=False,
                ),
                "torchattacks": _torchattacks("CW", c=1, steps=50, lr=0.01),
                "art": _art(
                    "CarliniL2Method", max_iter=50, binary_search_steps=1, learning_rate=0.01, initial_const=1.0
                ),
                "adv_lib": _adv_lib(
                    "carlini_wagner_l2",
                    max_iterations=50,
                    binary_search_steps=1,
                    learning_rate=0.01,
                    initial_const=1.0,
                    abort_early=False,
                ),
                "cleverhans": _cleverhans_cw(max_iterations=50, binary_search_steps=1, lr=0.01, initial_const=1.0),
            },
            remarks={"torchattacks": "stops when the batch's cost rises"},
        ),
        "CW L2, 5 x 30 steps": Contest(
            norm="l2",
            ours=lambda: a.CarliniWagnerL2(c=0.01, steps=30, search_steps=5, box="tanh", abort_early=False),
            peers={
                "foolbox": _foolbox(
                    "L2CarliniWagnerAttack",
                    None,
                    steps=30,
                    binary_search_steps=5,
                    stepsize=0.01,
                    initial_const=0.01,
                    abort_early=False,
                ),
                "adv_lib": _adv_lib(
                    "carlini_wagner_l2",
                    max_iterations=30,
                    binary_search_steps=5,
                    learning_rate=0.01,
                    initial_const=0.01,
                    abort_early=False,
                ),
                "cleverhans": _cleverhans_cw(max_iterations=30, binary_search_steps=5, lr=0.01, initial_const=0.01),
            },
            remarks={"cleverhans": "each image's constant is the sum of the batch's"},
        ),
        "CW Linf, bounded": Contest(norm="linf", ours=lambda: a.CarliniWagnerLinf(eps=EPS, steps=50)),
        "CW Linf, original": Contest(
            norm="linf",
            # half the peers' rate: under their tanh a pixel moves by at most half of it
            ours=lambda: a.CarliniWagnerLinf(eps=1.0, c=20.0, steps=20, learning_rate=0.005, variant="carlini"),
            peers={
                "art": _art("CarliniLInfMethod", max_iter=20, learning_rate=0.01),
                "adv_lib": _adv_lib("carlini_wagner_linf", max_iterations=20, learning_rate=0.01),
            },
            images=8,
        ),
        "CW L0": Contest(
            norm="l0",
            ours=lambda: a.CarliniWagnerL0(steps=20, learning_rate=0.1),
            peers={
                "art": _art(
                    "CarliniL0Method", max_iter=20, learning_rate=0.1, binary_search_steps=1, initial_const=100.0
                )
            },
            images=4,
            remarks={"art": "one set of pixels for the whole batch"},
        ),
        "EAD, 50 steps": Contest(
            norm="l1",
            ours=lambda: a.EAD(c=10.0, beta=0.001, steps=50, search_steps=0, abort_early=False),
            peers={
                "foolbox": _foolbox(
                    "EADAttack",
                    None,
                    steps=50,
                    binary_search_steps=1,
                    initial_const=10.0,
                    regularization=0.001,
                    initial_stepsize=0.01,
                    abort_early=False,
                ),
                "torchattacks": _torchattacks(
                    "EADEN", max_iterations=50, binary_search_steps=1, initial_const=10.0, beta=0.001, abort_early=False
                ),
                "art": _art(
                    "ElasticNet", max_iter=50, binary_search_steps=1, initial_const=10.0, beta=0.001, learning_rate=0.01
                ),
            },
            remarks={"torchattacks": "its first step moves the clean image too", "foolbox": "failures come back black"},
        ),
        "DDN, 50 steps": Contest(
            norm="l2",
            ours=lambda: a.DDN(steps=50),
            peers={"foolbox": _foolbox("DDNAttack", None, steps=50), "adv_lib": _adv_lib("ddn", steps=50, levels=None)},
        ),
        **{
            f"FMN {name}, 50 steps": Contest(
                norm=name.lower(),
                ours=partial(_make, "FMN", norm=name.lower(), steps=50, step_size=size),
                peers={
                    "foolbox": _foolbox(
                        f"{name if name != 'Linf' else 'LInf'}FMNAttack", None, steps=50, max_stepsize=size
                    ),
                    "adv_lib": _adv_lib("fmn", norm=order, steps=50, α_init=size),
                },
            )
            for name, order, size in (("L2", 2, 1.0), ("Linf", math.inf, 10.0), ("L1", 1, 1.0), ("L0", 0, 1.0))
        },
        "FAB Linf, 20 steps": Contest(
            norm="linf",
            ours=lambda: a.FAB(steps=20),
            peers={
                "torchattacks": _torchattacks("FAB", eps=1.0, steps=20),
                "adv_lib": _adv_lib("fab", norm=math.inf, n_iter=20),
            },
        ),
        "Square, 100 queries": Contest(
            norm="linf",
            ours=lambda: a.Square(eps=EPS, queries=100),
            peers={
                "torchattacks": _torchattacks("Square", eps=EPS, n_queries=100),
                "art": _art("SquareAttack", eps=EPS, max_iter=100),
            },
        ),
        "AutoAttack": Contest(
            norm="linf",
            ours=lambda: a.AutoAttack(eps=EPS, steps=10, queries=100),
            peers={"torchattacks": _torchattacks_autoattack(EPS, steps=10, queries=100)},
            images=16,
        ),
        "JSMA": Contest(
            norm="l0",
            ours=lambda: a.JSMA(theta=1.0, gamma=0.1),
            peers={
                "torchattacks": _torchattacks("JSMA", theta=1.0, gamma=0.1),
                "art": _art("SaliencyMapMethod", theta=1.0, gamma=0.1),
            },
            targeted=True,
            images=4,
        ),
        "OnePixel": Contest(
            norm="l0",
            ours=lambda: a.OnePixel(population=50, generations=5),
            peers={
                "torchattacks": _torchattacks("OnePixel", pixels=1, steps=5, popsize=50),
                "art": _art("PixelAttack", th=1, es=1, max_iter=5),
            },
            images=8,
            remarks={"art": "another population"},
        ),
        "Universal, one pass": Contest(
            norm="linf",
            ours=lambda: a.UniversalPerturbation(eps=EPS, passes=1, delta=0.0),
            peers={
                "art": _art(
                    "UniversalPerturbation",
                    eps=EPS,
                    norm=math.inf,
                    max_iter=1,
                    delta=0.0,
                    attacker="deepfool",
                    attacker_params={"max_iter": 10, "epsilon": 0.02, "verbose": False},
                )
            },
        ),
        "L-BFGS": Contest(norm="l2", ours=lambda: a.LBFGS(c=0.01, steps=20, search_steps=3), images=8),
        "Patch": Contest(norm="linf", ours=lambda: a.BoundedPatch(size=8, steps=20)),
        "LaVAN": Contest(norm="l0", ours=lambda: a.LaVAN(size=8, steps=20)),
        "RandomNoise": Contest(
            norm="linf",
            ours=lambda: a.RandomNoise(eps=EPS),
            peers={"foolbox": _foolbox("LinfAdditiveUniformNoiseAttack", EPS)},
        ),
        "RandomSearch": Contest(norm="linf", ours=lambda: a.RandomSearch(eps=EPS, draws=100)),
        "At temperature": Contest(norm="linf", ours=lambda: a.AtTemperature(attack=a.FGSM(eps=EPS), temperature=40.0)),
        "SemiRandomNoise": Contest(norm="l2", ours=lambda: a.SemiRandomNoise(eps=0.5)),
        # nobody else has these; benchmarks/perceptual.py compares them with a general solver
        "PGAP, 20 steps": Contest(norm="l2", ours=lambda: a.PGAP(steps=20, stop_at_success=False)),
        "FPGAP, 20 steps": Contest(norm="l2", ours=lambda: a.FPGAP(steps=20, stop_at_success=False)),
    }


def ours(attack: attacks.Attack, targeted: bool) -> Craft:
    """Our attack as a contestant."""

    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        made = attack
        if isinstance(made, attacks.UniversalPerturbation):
            made = made.fit(model, [images])
        return made(model, images, labels, targets=labels if targeted else None, seed=0)

    return craft


def variants(attack: attacks.Attack) -> dict[str, attacks.Attack]:
    """Settings of ours that change what a pass costs or how many there are: label -> attack."""
    fields = {f.name for f in dataclasses.fields(attack)}  # type: ignore[arg-type]
    found = {}
    if "fold" in fields:
        found["fold=False"] = dataclasses.replace(attack, fold=False)  # type: ignore[type-var]
    if "stop_at_success" in fields:
        other = not attack.stop_at_success  # type: ignore[attr-defined]
        found[f"stop_at_success={other}"] = dataclasses.replace(attack, stop_at_success=other)  # type: ignore[type-var]
    if getattr(attack, "box", "") == "tanh":
        # half the rate: under tanh a pixel moves by at most half of it
        rate = attack.learning_rate / 2  # type: ignore[attr-defined]
        found["box=clip, half rate"] = dataclasses.replace(attack, box="clip", learning_rate=rate)  # type: ignore
    return found


def _make(name: str, **settings: Any) -> attacks.Attack:
    return getattr(attacks, name)(**settings)


def _foolbox(name: str, eps: float | None, **options: Any) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        import foolbox

        shown = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        attack = getattr(foolbox.attacks, name)(**options)
        return attack(shown, images, foolbox.criteria.Misclassification(labels), epsilons=eps)[1]

    return craft


def _torchattacks(name: str, *, least_likely: bool = False, **options: Any) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        import torchattacks

        attack = getattr(torchattacks, name)(model, **options)
        if least_likely:
            attack.set_mode_targeted_least_likely(1, quiet=True)
        elif name == "JSMA":
            attack.set_mode_targeted_by_label(quiet=True)
        return attack(images, labels)

    return craft


def _torchattacks_autoattack(eps: float, *, steps: int, queries: int) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        import torchattacks as t

        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        attack = t.MultiAttack(
            [
                t.APGD(model, eps=eps, steps=steps, seed=1),
                t.APGDT(model, eps=eps, steps=steps, seed=1, n_classes=classes),
                t.FAB(model, eps=eps, steps=steps, seed=1, n_classes=classes, multi_targeted=True),
                t.Square(model, eps=eps, n_queries=queries, seed=1),
            ]
        )
        return attack(images, labels)

    return craft


def _art(name: str, **options: Any) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        estimator = PyTorchClassifier(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(images.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if images.is_cuda else "cpu",
        )
        kind = getattr(evasion, name)
        wanted = {"batch_size": len(images), "verbose": False}
        known = inspect.signature(kind).parameters
        attack = kind(estimator, **{key: value for key, value in wanted.items() if key in known}, **options)
        given = nn.functional.one_hot(labels, classes).float().cpu().numpy()
        return torch.from_numpy(attack.generate(x=images.cpu().numpy(), y=given)).to(images)

    return craft


def _adv_lib(name: str, **options: Any) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        import adv_lib.attacks

        return getattr(adv_lib.attacks, name)(model, images, labels, **options)

    return craft


def _cleverhans(name: str, **options: Any) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        module = importlib.import_module(f"cleverhans.torch.attacks.{name}")
        return getattr(module, name)(model, images, y=labels, **options)

    return craft


def _cleverhans_pgd(eps: float, step: float, steps: int, norm: float, *, start: bool) -> Craft:
    return _cleverhans(
        "projected_gradient_descent",
        eps=eps,
        eps_iter=step,
        nb_iter=steps,
        norm=norm,
        clip_min=0,
        clip_max=1,
        rand_init=start,
        rand_minmax=eps,
        sanity_checks=False,
    )


def _cleverhans_cw(**options: Any) -> Craft:
    def craft(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        from cleverhans.torch.attacks.carlini_wagner_l2 import carlini_wagner_l2

        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        return carlini_wagner_l2(model, images, classes, y=labels, clip_min=0, clip_max=1, **options)

    return craft
