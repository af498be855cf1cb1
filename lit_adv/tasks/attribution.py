"""What REDRL says beside the attack's name: on which network, how strong, and how far a wrong name is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lit_adv.data import AdversarialBatch, AdversarialDataModule
from lit_adv.metrics import BudgetError, HierarchicalRecognition, RecognitionAccuracy, VictimAccuracy
from lit_adv.models import Attribution, AttributionHeads


class AttributionTargets:
    """The right answers of the heads, from a batch's `victim`, `attack` and `setting`.

    The victim's index is that among the victims trained on. The budget is the Linf radius that the attack was given
    (`lit_adv.attacks.linf_budget`), whatever it used of it, as log2 of grey levels: a factor counts alike for small and
    large ones. Clean images have neither; images of a victim held out have no victim; settings without such a radius
    (DeepFool, CW-L2, other norms) have no budget.

    Args:
        data: Knows the victims and the settings.

    Attributes:
        victims: ``(V,)`` int64, index among the victims trained on, -1 for those held out.
        budgets: ``(A, S)`` float32, for the settings of each class; nan where there is none.
    """

    def __init__(self, data: AdversarialDataModule) -> None:
        trained = data.trained_victims
        self.victims = torch.tensor([trained.index(v) if v in trained else -1 for v in data.victim_names])
        radii = data.budgets
        self.budgets = torch.full((len(data.attack_classes), max(map(len, radii.values()))), math.nan)
        for number, name in enumerate(data.attack_classes[1:], 1):
            for setting, radius in enumerate(radii[name]):
                if radius is not None:
                    self.budgets[number, setting] = math.log2(255 * radius)

    def of(self, batch: AdversarialBatch) -> tuple[Tensor, Tensor]:
        """Victims ``(B,)`` int64, -1 where there is no answer, and budgets ``(B,)`` float32, nan there."""
        device = batch.attack.device
        self.victims, self.budgets = self.victims.to(device), self.budgets.to(device)
        victim = self.victims[batch.victim.clamp(min=0)]
        return torch.where(batch.victim >= 0, victim, -1), self.budgets[batch.attack, batch.setting]


def attribution_losses(
    heads: AttributionHeads,
    logits: Tensor,
    said: Attribution,
    attack: Tensor,
    victim: Tensor,
    budget: Tensor,
    smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the losses for attack, victim and budget.

    With s the log-variance of a task and l its loss on an image, a task adds the mean over the batch of ``exp(-s) l +
    s/2`` for the two classifications and ``exp(-s)/2 l + s/2`` for the regression (Kendall, Gal & Cipolla 2018,
    arXiv:1705.07115, equations 7 and 10), where an image that has no answer adds 0: not to the loss, and not to what s
    is learnt from. The budget's l is the squared difference of log2, on images with a budget whose attack was
    recognised (Guo et al. 2023, arXiv:2302.14059: the budget hangs on the attack). Means are over the whole batch, so
    that equal shares of it on several ranks give the same gradient as one rank.

    Args:
        heads: Hold the log-variances.
        logits: ``(B, A)`` over the attack classes.
        said: What the heads said.
        attack: ``(B,)`` int64, right answers.
        victim: ``(B,)`` int64, right answers, -1 for none.
        budget: ``(B,)`` log2 of grey levels, right answers, nan for none.
        smoothing: Label smoothing of both classifications.

    Returns:
        The sum, and each task's loss by itself: the mean over the images that have an answer, 0 where there is none.
    """
    logits = logits.float()
    everyone = torch.ones_like(attack, dtype=torch.bool)
    by_image = {"attack": (F.cross_entropy(logits, attack, reduction="none", label_smoothing=smoothing), everyone, 1.0)}
    if said.victim is not None:
        known = victim >= 0
        named = said.victim.float()
        losses = F.cross_entropy(named, victim.clamp(min=0), reduction="none", label_smoothing=smoothing)
        by_image["victim"] = losses, known, 1.0
    if said.budget is not None:
        counted = ~budget.isnan() & (logits.argmax(1) == attack)
        # chosen before it is squared: the gradient of what is nan would be nan
        off = torch.where(counted, said.budget - budget, 0.0)
        by_image["budget"] = off.square(), counted, 0.5
    total, parts = logits.new_zeros(()), {}
    for number, (name, (losses, counted, scale)) in enumerate(by_image.items()):
        s = heads.log_variances[number].float()
        total = total + (counted * (scale * torch.exp(-s) * losses + s / 2)).mean()
        parts[name] = (counted * losses).sum() / counted.sum().clamp(min=1)
    return total, parts


class AttributionScores:
    """What is scored beside recognition over one split: the hierarchy, victims seen and unseen apart, and the heads.

    Args:
        data: Knows classes, families, victims and budgets.
        heads: The heads that there are.
        apart: Whether the split shows victims that were held out of training.
    """

    def __init__(self, data: AdversarialDataModule, heads: tuple[str, ...] = (), apart: bool = False) -> None:
        classes = data.attack_classes
        self.classes, self.victims, self.named = classes, data.victim_names, data.trained_victims
        self.hierarchy = HierarchicalRecognition(classes, data.attack_families)
        self.groups: dict[str, RecognitionAccuracy] = {}
        if apart and data.held_out:
            self.groups = {name: RecognitionAccuracy(classes) for name in ("seen", "unseen")}
        self.victim = VictimAccuracy(classes, self.victims, self.named) if "victim" in heads else None
        self.budget = BudgetError(classes) if "budget" in heads else None
        self.targets = AttributionTargets(data)

    def reset(self, device: torch.device) -> None:
        """Starts anew, on a device."""
        for metric in self._metrics():
            metric.to(device).reset()

    def update(self, batch: AdversarialBatch, prediction: Tensor, said: Attribution | None) -> None:
        """Counts a batch, whose attacks were recognised as ``prediction`` ``(B,)``."""
        self.hierarchy.update(prediction, batch.attack)
        victim, budget = self.targets.of(batch)
        for name, metric in self.groups.items():
            rows = (victim >= 0) if name == "seen" else (batch.victim >= 0) & (victim < 0)
            metric.update(prediction[rows], batch.attack[rows])
        if self.victim is not None and said is not None and said.victim is not None:
            self.victim.update(said.victim.argmax(1), batch.attack, batch.victim)
        if self.budget is not None and said is not None and said.budget is not None:
            self.budget.update(grey_levels(said.budget), grey_levels(budget), prediction, batch.attack)

    def results(self) -> dict[str, Any]:
        """All scores, by section, in plain numbers, None where there is no image; collective."""
        found: dict[str, Any] = {"hierarchy": self._hierarchy()}
        if self.groups:
            found["recognition_by_victim"] = {name: self._group(metric) for name, metric in self.groups.items()}
        if self.victim is not None:
            found["victim"] = self._victim(self.victim)
        if self.budget is not None:
            found["budget"] = self._budget(self.budget)
        return found

    def _metrics(self) -> list[Metric]:
        heads = [metric for metric in (self.victim, self.budget) if metric is not None]
        return [self.hierarchy, *self.groups.values(), *heads]

    def _hierarchy(self) -> dict[str, Any]:
        found, names = self.hierarchy.compute(), self.hierarchy.families
        return {
            **{
                name: _plain(found[name])
                for name in ("precision", "recall", "f1", "family", "family_micro", "algorithm")
            },
            "families": dict(zip(self.classes, self.hierarchy.family_of, strict=True)),
            "per_family": _named(names, found["per_family"]),
            "per_family_algorithm": _named(names, found["per_family_algorithm"]),
            "counts": _named(names, found["counts"]),
        }

    def _group(self, metric: RecognitionAccuracy) -> dict[str, Any]:
        found: dict[str, Any] = metric.compute()
        # clean images were made against nobody
        return {
            "micro": _plain(found["micro"]),
            "macro": _plain(found["macro"]),
            "per_class": _named(self.classes[1:], found["per_class"][1:]),
            "counts": _named(self.classes[1:], found["counts"][1:]),
        }

    def _victim(self, metric: VictimAccuracy) -> dict[str, Any]:
        found = metric.compute()
        return {
            "accuracy": _plain(found["accuracy"]),
            "macro": _plain(found["macro"]),
            "per_attack": _named(self.classes[1:], found["per_attack"][1:]),
            "counts": _named(self.classes[1:], found["images"][1:]),
            "taken_for": {
                victim: _named(self.named, row) for victim, row in zip(self.victims, found["confusion"], strict=True)
            },
        }

    def _budget(self, metric: BudgetError) -> dict[str, Any]:
        found = metric.compute()
        bounded = found["images"].nonzero()[:, 0]
        names = [self.classes[number] for number in bounded.tolist()]
        return {
            **{name: _plain(found[name]) for name in ("mae", "within", "within_all")},
            "factor": metric.factor,
            "per_attack": _named(names, found["per_attack"][bounded]),
            "per_attack_within": _named(names, found["per_attack_within"][bounded]),
            "recognised": _named(names, found["recognised"][bounded]),
            "counts": _named(names, found["images"][bounded]),
        }


def attribution_numbers(results: dict[str, Any], split: str) -> dict[str, float]:
    """What is logged of `AttributionScores.results`, by key; a score of no image is left out."""
    hierarchy = results["hierarchy"]
    numbers = {"family": hierarchy["family"], "hierarchical_f1": hierarchy["f1"]}
    numbers |= {"algorithm_in_family": hierarchy["algorithm"]}
    numbers |= {f"family/{name}": value for name, value in hierarchy["per_family"].items()}
    for name, group in results.get("recognition_by_victim", {}).items():
        numbers[f"recognition_{name}_victims"] = group["macro"]
    if "victim" in results:
        numbers["victim"] = results["victim"]["accuracy"]
        numbers |= {f"victim/{name}": value for name, value in results["victim"]["per_attack"].items()}
    if "budget" in results:
        numbers |= {f"budget_{name}": results["budget"][name] for name in ("mae", "within", "within_all")}
        numbers |= {f"budget_mae/{name}": value for name, value in results["budget"]["per_attack"].items()}
    return {f"{split}/{name}": value for name, value in numbers.items() if value is not None}


def grey_levels(budget: Tensor) -> Tensor:
    """Budgets in grey levels, at most 255, from their log2."""
    return torch.exp2(budget.clamp(max=math.log2(255)))


def _named(names: Sequence[str], values: Tensor) -> dict[str, Any]:
    return {name: _plain(value) for name, value in zip(names, values.cpu(), strict=True)}


def _plain(value: Tensor) -> float | int | None:
    """A number, None for nan."""
    number = value.item()
    return None if math.isnan(number) else number
