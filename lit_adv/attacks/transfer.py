"""Attacks crafted on other networks than the one they are meant for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_adv.attacks.attack import Attack, Problem, _call, _explain, _untouched, mix_seeds
from lit_adv.attacks.gradient import PGD
from lit_adv.attacks.norms import Norm
from lit_adv.attacks.objectives import Objective
from lit_adv.attacks.randomness import Draws
from lit_adv.attacks.regions import Mask

Average = Literal["losses", "logits", "probabilities"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleTransfer(Attack):
    """Crafts on an ensemble of networks, to fool another one, Liu et al. 2017, arXiv:1611.02770, section 2.3.

    The network of the call is asked nothing; `run` tells whether it is fooled. What is averaged over the networks is
    their ``probabilities`` (Liu et al., equation 3), their ``logits`` (Dong et al. 2018, arXiv:1710.06081, equation 6)
    or their ``losses``: the objective of each by itself. An attack that follows no objective, such as DeepFool, sees
    the averaged log-probabilities there. The ensemble's own answer decides where an attack looks for success.

    Args:
        attack: Any attack, with which the ensemble is attacked.
        models: The networks, of one number of classes; left as they are, in every respect.
        weights: Of each network; they are scaled to sum to 1. None weighs all alike.
        average: What is averaged.
    """

    attack: Attack
    models: Sequence[nn.Module]
    weights: tuple[float, ...] | None = None
    average: Average = "logits"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not self.models or not all(isinstance(model, nn.Module) for model in self.models):
            raise ValueError(f"{name}: models must be one network or more, got {self.models!r}")
        if self.average not in ("losses", "logits", "probabilities"):
            raise ValueError(f"{name}: average must be one of losses, logits, probabilities, got {self.average!r}")
        weights = self.weights
        if weights is not None and (
            len(weights) != len(self.models)
            or not all(0 <= weight < math.inf for weight in weights)
            or not sum(weights) > 0
        ):
            raise ValueError(
                f"{name}: weights must be {len(self.models)} numbers, one a model, at least 0 and not all 0, got"
                f" {weights}"
            )

    @classmethod
    def example(cls) -> EnsembleTransfer:
        return cls(models=(TinyNetwork(0), TinyNetwork(1)), attack=PGD(eps=8 / 255, step_size=4 / 255, steps=2))

    def _passes(self, classes: int) -> tuple[float, float]:
        return 0, 0

    def _budget(self) -> tuple[Norm, float] | None:
        return self.attack._budget()

    def _craft(self, problem: Problem) -> Tensor:
        ensemble = _Ensemble(self.models, self.weights, self.average)
        return craft_on(ensemble, self.attack, problem, _AveragedLosses if self.average == "losses" else Problem)


def craft_on(network: nn.Module, attack: Attack, problem: Problem, kind: type[Problem] = Problem) -> Tensor:
    """What ``attack`` finds on a network of the attacker's own, which is left untouched; nothing is counted.

    Args:
        network: Maps images in [0, 1] to logits.
        attack: Any attack.
        problem: Of the network that is meant to be fooled.
        kind: How the network is accessed.
    """
    seeds = problem.draws.seeds
    region = None if problem.mask is None else Mask(problem.mask)
    mask = attack._region(problem.x, mix_seeds(seeds), region)
    if mask is not None:
        mask = mask.expand(len(problem), -1, -1, -1)
    with _untouched(network) as inner:
        owner = type(attack).__name__
        own = kind(inner, problem.x, problem.classes, problem.targeted, mask, Draws(seeds), owner=owner)
        if attack._folds(own):
            own.fold(required=bool(attack.fold))
        return attack._solve(own)


class TinyNetwork(nn.Module):
    """A linear classifier of 16 grey cells with 8 classes, which takes images of any size; for small examples."""

    weight: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("weight", 8 * Draws(torch.tensor([seed])).normal((8, 16))[0])

    def forward(self, x: Tensor) -> Tensor:
        cells = F.adaptive_avg_pool2d(x.mean(1, keepdim=True) - 0.5, 4).flatten(1)
        return cells @ self.weight.to(x).T


class _Ensemble(nn.Module):
    """One network out of several, each called in its own precision."""

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float] | None, average: Average) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        given = [1.0] * len(models) if weights is None else weights
        self.weights = [weight / sum(given) for weight in given]
        self.average = average

    def forward(self, x: Tensor) -> Tensor:
        """``(B, K)``, or the logits of all networks side by side where losses are averaged."""
        answers = [_call(member, x).to(x.dtype) for member in self.members]
        if len({answer.shape for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise ValueError(f"EnsembleTransfer: models must have the same number of classes, got logits {shapes}")
        if self.average == "losses":
            return torch.cat(answers, 1)
        if self.average == "logits":
            return self.weighted(answers)
        # log(sum w_i p_i) without leaving the logarithm; one of weight 0 gets -inf
        shares = x.new_tensor(self.weights).log()
        return torch.stack([answer.log_softmax(1) for answer in answers], -1).add(shares).logsumexp(-1)

    def weighted(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight * value for weight, value in zip(self.weights, values, strict=True)]).sum(0)


class _AveragedLosses(Problem):
    """An objective is that of each network, averaged; as logits count the averaged log-probabilities."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._classes_checked = [False]  # shared by `take`

    def logits(self, x: Tensor) -> Tensor:
        return self._together(super().logits(x))

    def gradient(self, x: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        def averaged(joint: Tensor, classes: Tensor, targeted: bool) -> Tensor:
            return self._ensemble.weighted([objective(logits, classes, targeted) for logits in self._apart(joint)])

        joint, losses, gradient = super().gradient(x, averaged)
        return self._together(joint), losses, gradient

    def graph(self, x: Tensor) -> tuple[Tensor, Tensor]:
        leaf, joint = super().graph(x)
        return leaf, self._together(joint)

    @property
    def _ensemble(self) -> _Ensemble:
        return cast(_Ensemble, self._model)

    def _apart(self, joint: Tensor) -> Sequence[Tensor]:
        count = len(self._ensemble.weights)
        # `Problem` has compared the classes with the width of all answers together
        classes = joint.shape[1] // count
        if not self._classes_checked[0] and bool((self._given >= classes).any()):
            raise ValueError(f"{self._owner}: {_explain(self.x, self._given, classes)}")
        self._classes_checked[0] = True
        return joint.chunk(count, 1)

    def _together(self, joint: Tensor) -> Tensor:
        return self._ensemble.weighted([logits.log_softmax(1) for logits in self._apart(joint)])
