"""Attacks of other libraries wherever one of ours can be, with our guarantees around them."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import random
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem
from lit_adv.attacks.norms import Norm, NormName, norm, rows
from lit_adv.attacks.radius import Radius, parse
from lit_adv.attacks.randomness import mix

Option = bool | int | float | str | None


class PeerAttack(Attack):
    """An attack of another library: the class called ``name`` there, built with ``options``.

    The library sees a network without parameters that counts passes, applies the mask to what goes in and to the
    gradients that come back, and shields the model. Two passes more an image than the library takes (the prediction
    on the clean image and, without ``eps``, the check of the result). ``iterations`` stay 0: a library does not tell.

    Libraries draw one stream of random numbers for a batch and may stop it as a whole, so that an image's result can
    depend on its batch and on the order; ``per_image`` makes a call of its own of every image, which restores what our
    attacks promise, and is slow.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    name: str
    options: dict[str, Option]
    norm: NormName | None
    eps: Radius | None
    per_image: bool

    @property
    def minimal_norm(self) -> bool:  # type: ignore[override]
        """Without a budget it looks for the smallest perturbation: failures give the clean image."""
        return self.eps is None

    @abstractmethod
    def _peer(self, network: nn.Module, problem: Problem, classes: int) -> Tensor:
        """The library's adversarial images for ``problem``; ``network`` is the only way to the model."""

    def _check(self) -> None:
        owner = type(self).__name__
        if not self.name.isidentifier():
            raise ValueError(f"{owner}: name must be a class of {self.package}, got {self.name!r}")
        for key, value in self.options.items():
            if not isinstance(value, bool | int | float | str | None):
                raise ValueError(f"{owner}: options must hold numbers and text, got {value!r} for {key}")
        object.__setattr__(self, "options", {key: _number(value) for key, value in self.options.items()})
        if (self.eps is None) != (self.norm is None):
            raise ValueError(f"{owner}: eps and norm must be given together, got eps={self.eps}, norm={self.norm!r}")
        if self.eps is not None and self.norm is not None:
            norm(self.norm, owner).check(owner, self.eps)

    def _budget(self) -> tuple[Norm, float] | None:
        return None if self.eps is None or self.norm is None else (norm(self.norm), float(self.eps))

    def _measure(self) -> Any:
        return norm("l2").size if self.minimal_norm else None

    def _craft(self, problem: Problem) -> Tensor:
        logits = problem.logits(problem.x)
        left = torch.arange(len(problem), device=problem.x.device)
        part = problem
        if self.minimal_norm:
            left = (~problem.succeeded(logits)).nonzero()[:, 0]
            part = problem.take(left)
        if not len(left):
            return problem.x
        parts = [part]
        if self.per_image:
            parts = [part.take(torch.tensor([row], device=left.device)) for row in range(len(part))]
        with _kept_random_state():
            found = torch.cat([self._ask(each, logits.shape[1]) for each in parts])
        result = problem.x.clone()
        result[left] = torch.where(found.isfinite(), found, part.x)
        if self.minimal_norm:
            result = problem.restrict(result)
            result = torch.where(rows(problem.succeeded(problem.logits(result))), result, problem.x)
        return result

    def _ask(self, problem: Problem, classes: int) -> Tensor:
        _seed(_seed_of(problem))
        network = _Network(problem, f"{type(self).__name__} ({self.package}'s {self.name})").eval()
        found = self._peer(network, problem, classes).detach().to(problem.x)
        if found.shape != problem.x.shape:
            raise ValueError(
                f"{type(self).__name__}: {self.package}'s {self.name} must return images of shape"
                f" {tuple(problem.x.shape)}, got {tuple(found.shape)}"
            )
        return found

    def _module(self, path: str) -> ModuleType:
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{type(self).__name__} needs {self.package}, and {error.name} is missing:"
                f" pip install 'lit_adv[{self.extra}]'",
                name=error.name,
            ) from error

    def _kind(self, module: ModuleType) -> Any:
        """The library's class."""
        kind = getattr(module, self.name, None)
        if not inspect.isclass(kind):
            known = [each for each, held in vars(module).items() if inspect.isclass(held)]
            near = ", ".join(difflib.get_close_matches(self.name, known, cutoff=0.4)) or f"see {module.__name__}"
            raise ValueError(
                f"{type(self).__name__}: name must be an attack of {self.package} (near: {near}), got {self.name!r}"
            )
        return kind

    def _build(self, kind: Any, *first: Any, **wanted: Any) -> Any:
        """``kind(*first, ...)`` with the options, and of ``wanted`` what the class takes and no option says."""
        known = inspect.signature(kind).parameters
        unknown = [key for key in self.options if key not in known]
        if unknown:
            free = ", ".join(list(known)[len(first) :]) or "none"
            raise ValueError(
                f"{type(self).__name__}: options must be those of {self.package}'s {self.name} ({free}),"
                f" got {', '.join(unknown)}"
            )
        return kind(*first, **{key: value for key, value in wanted.items() if key in known} | self.options)

    def _refuse_targets(self, problem: Problem, able: bool) -> None:
        if problem.targeted and not able:
            raise ValueError(f"{type(self).__name__}: targets must be None, {self.package}'s {self.name} takes none")


@dataclass(frozen=True, kw_only=True)
class FoolboxAttack(PeerAttack):
    """An attack of Foolbox (Rauber et al. 2017, arXiv:1707.04131); needs ``lit_adv[foolbox]``.

    Args:
        name: Class in ``foolbox.attacks``, e.g. ``LinfPGD``.
        options: Its arguments; a fraction may be given as text, ``"2/255"``.
        norm: Norm of the ball; the class must be of that norm.
        eps: Radius in pixel units of [0, 1]; None lets the attack look for the smallest perturbation.
        per_image: One call an image: the result does not depend on the batch.
        fold: Attack a folded snapshot of the model; None is False here.
    """

    name: str
    options: dict[str, Option] = field(default_factory=dict, hash=False)
    norm: NormName | None = None
    eps: Radius | None = None
    per_image: bool = False
    fold: bool | None = False

    package = "foolbox"
    extra = "foolbox"

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> FoolboxAttack:
        options: dict[str, Option] = {"steps": 3, "abs_stepsize": 4 / 255, "random_start": False}
        return cls(name="LinfPGD", options=options, norm="linf", eps=8 / 255)

    def _peer(self, network: nn.Module, problem: Problem, classes: int) -> Tensor:
        foolbox = self._module("foolbox")
        attack = self._build(self._kind(foolbox.attacks))
        if self.eps is None and isinstance(attack, foolbox.attacks.base.FixedEpsilonAttack):
            raise ValueError(f"FoolboxAttack: eps must be given for {self.name}, which has no search of its own")
        order = getattr(getattr(attack, "_distance", None) or getattr(attack, "distance", None), "p", None)
        of = {0: "l0", 1: "l1", 2: "l2", float("inf"): "linf"}.get(order)  # type: ignore[arg-type]
        if self.norm is not None and of is not None and of != self.norm:
            raise ValueError(f"FoolboxAttack: norm must be {of} for {self.name}, got {self.norm!r}")
        criterion = (
            foolbox.criteria.TargetedMisclassification if problem.targeted else foolbox.criteria.Misclassification
        )
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=problem.x.device)
        eps = None if self.eps is None else float(self.eps)
        given = model, problem.x.clone(memory_format=torch.contiguous_format), criterion(problem.classes)
        # the call would clip and check once more, as the base does
        if isinstance(attack, foolbox.attacks.base.FixedEpsilonAttack):
            return attack.run(*given, epsilon=eps)
        if isinstance(attack, foolbox.attacks.base.MinimizationAttack):
            return attack.run(*given, early_stop=eps)
        return attack(*given, epsilons=eps)[1]


@dataclass(frozen=True, kw_only=True)
class TorchattacksAttack(PeerAttack):
    """An attack of Torchattacks (Kim 2020, arXiv:2010.01950); needs ``lit_adv[torchattacks]``.

    Args:
        name: Class in ``torchattacks``, e.g. ``PGD``.
        options: Its arguments; ``eps``, ``norm``, ``n_classes`` and ``seed`` are filled in where it has them.
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1]; None for an attack that looks for the smallest perturbation.
        per_image: One call an image: the result does not depend on the batch.
        fold: Attack a folded snapshot of the model; None is False here.
    """

    name: str
    options: dict[str, Option] = field(default_factory=dict, hash=False)
    norm: NormName | None = None
    eps: Radius | None = None
    per_image: bool = False
    fold: bool | None = False

    package = "torchattacks"
    extra = "torchattacks"

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> TorchattacksAttack:
        options: dict[str, Option] = {"steps": 3, "alpha": 4 / 255, "random_start": False}
        return cls(name="PGD", options=options, norm="linf", eps=8 / 255)

    def _peer(self, network: nn.Module, problem: Problem, classes: int) -> Tensor:
        kind = self._kind(self._module("torchattacks"))
        wanted: dict[str, Any] = {"n_classes": classes, "seed": _seed_of(problem)}
        if self.eps is not None:
            name = {"linf": "Linf", "l2": "L2", "l1": "L1"}.get(self.norm or "", self.norm)
            wanted |= {"eps": float(self.eps), "norm": name}
        attack = self._build(kind, network, **wanted)
        self._refuse_targets(problem, "targeted" in attack.supported_mode)
        if problem.targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        return attack(problem.x.clone(memory_format=torch.contiguous_format), problem.classes)


@dataclass(frozen=True, kw_only=True)
class ARTAttack(PeerAttack):
    """An attack of the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv:1807.01069); needs ``lit_adv[art]``.

    Works in float32 and, between the passes, on the CPU, as that library does.

    Args:
        name: Class in ``art.attacks.evasion``, e.g. ``ProjectedGradientDescentPyTorch``.
        options: Its arguments; ``eps``, ``norm``, ``targeted``, ``batch_size`` and ``verbose`` are filled in.
        norm: Norm of the ball.
        eps: Radius in pixel units of [0, 1]; None for an attack that looks for the smallest perturbation.
        per_image: One call an image: the result does not depend on the batch.
        fold: Attack a folded snapshot of the model; None is False here.
    """

    name: str
    options: dict[str, Option] = field(default_factory=dict, hash=False)
    norm: NormName | None = None
    eps: Radius | None = None
    per_image: bool = False
    fold: bool | None = False

    package = "adversarial-robustness-toolbox"
    extra = "art"

    def __post_init__(self) -> None:
        self._check()

    @classmethod
    def example(cls) -> ARTAttack:
        options: dict[str, Option] = {"max_iter": 3, "eps_step": 4 / 255}
        return cls(name="ProjectedGradientDescentPyTorch", options=options, norm="linf", eps=8 / 255)

    def _peer(self, network: nn.Module, problem: Problem, classes: int) -> Tensor:
        kind = self._kind(self._module("art.attacks.evasion"))
        # its labels are targets always
        only_targeted = self.name in ("SaliencyMapMethod", "TargetedUniversalPerturbation")
        if only_targeted and not problem.targeted:
            raise ValueError(f"ARTAttack: targets must be given for {self.name}")
        self._refuse_targets(problem, only_targeted or "targeted" in inspect.signature(kind).parameters)
        x = problem.x.detach().float()
        estimator = self._module("art.estimators.classification").PyTorchClassifier(
            model=network,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=classes,
            clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )
        wanted: dict[str, Any] = {"targeted": problem.targeted, "batch_size": len(x), "verbose": False}
        if self.eps is not None:
            order = {"linf": "inf", "l2": 2, "l1": 1}.get(self.norm or "", self.norm)
            wanted |= {"eps": float(self.eps), "norm": order}
        attack = self._build(kind, estimator, **wanted)
        labels = nn.functional.one_hot(problem.classes, classes).float()
        return torch.from_numpy(np.asarray(attack.generate(x=x.cpu().numpy(), y=labels.cpu().numpy())))


class _Network(nn.Module):
    """The model as another library may see it: no parameters but one that says where it lies, every pass counted."""

    def __init__(self, problem: Problem, owner: str) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=problem.x.device), requires_grad=False)
        self._problem = problem
        self._owner = owner

    def forward(self, x: Tensor) -> Tensor:
        given = x.dtype
        x = x.to(self._problem.x)
        part = self._part(x.detach())
        if part.mask is not None:
            x = torch.where(part.mask > 0, x, part.x)
        if x.requires_grad and torch.is_grad_enabled():
            return _Passes.apply(x, part).to(given)
        return part.logits(x).to(given, copy=True)  # some write into it

    def _part(self, x: Tensor) -> Problem:
        """The problem for the images that ``x`` are versions of; told apart by the clean image they are nearest to."""
        problem = self._problem
        if len(problem) == 1:
            return problem if len(x) == 1 else problem.take(torch.zeros(len(x), dtype=torch.int64, device=x.device))
        apart = torch.cdist(x.flatten(1), problem.x.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        # a large perturbation may lead an image past its neighbour, but not most of them
        if len(x) == len(problem) and bool(2 * (apart.diagonal() <= apart.amin(1)).sum() > len(x)):
            return problem
        if problem.mask is not None:
            raise ValueError(
                f"{self._owner}: region must be None where a batch of {len(problem)} goes through the model in parts"
                f" ({len(x)} here), or set per_image=True"
            )
        return problem.take(apart.argmin(1))


class _Passes(torch.autograd.Function):
    """Logits whose gradient is asked of the problem: in the images alone, masked, finite and counted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, problem: Problem) -> Tensor:
        with torch.enable_grad():
            ctx.problem = problem
            ctx.leaf, ctx.logits = problem.graph(x)
        return ctx.logits.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            total = (ctx.logits * gradient).sum()
        return ctx.problem.backward(total, ctx.leaf, keep_graph=True), None


@contextlib.contextmanager
def _kept_random_state() -> Iterator[None]:
    """Python's and NumPy's; the base keeps torch's."""
    state, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (what the libraries use)
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(legacy)  # noqa: NPY002


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)


def _seed_of(problem: Problem) -> int:
    """A 31-bit number out of the rows' seeds, whatever their order; not 0, which some take for none."""
    return int(mix(problem.draws.seeds).sum()) % (2**31 - 1) + 1


def _number(value: Option) -> Option:
    """``"2/255"`` as a number; other text as it is."""
    if isinstance(value, str) and "/" in value:
        with contextlib.suppress(ValueError):
            return parse(value)
    return value
