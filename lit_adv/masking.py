"""Is a classifier robust, or are its gradients masked? Attacks that must agree, and nine diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from lit_adv.attacks import APGD, FGSM, PGD, Attack, AutoAttack, RandFGSM, RandomSearch, Square
from lit_adv.attacks.attack import AttackResult, examined, predictions
from lit_adv.attacks.objectives import cross_entropy, margin
from lit_adv.evaluation import check_comparable, pair
from lit_adv.masking_verdict import THRESHOLDS, Diagnosis, judge
from lit_adv.metrics import MaskingCounts

__all__ = ["THRESHOLDS", "Diagnosis", "Probes", "check_judgement", "diagnose"]


class Probes:
    """Everything that is tried on a classifier before its gradients are believed.

    All attacks have the same Linf radius and work on the same images, those that the classifier has right: FGSM,
    RAND-FGSM, PGD on the cross-entropy with restarts, Auto-PGD on the margin, Square, FGSM on the margin, PGD in the
    whole box and, if wanted, AutoAttack. With an undefended network, also what FGSM and PGD make on that.

    Args:
        eps: Linf radius in pixel units of [0, 1], in (0, 1).
        steps: Of PGD and Auto-PGD, at least 50.
        restarts: Of the two.
        queries: Of Square.
        draws: Of the random search, at least 1000.
        autoattack: Whether AutoAttack runs too.
        radii: Further radii for FGSM and PGD, each in (0, 1).
        undefended: Whether there is an undefended network.
        owner: Who asks, for the errors.

    Raises:
        ValueError: A field is out of range.
    """

    def __init__(
        self,
        eps: float,
        *,
        steps: int = 50,
        restarts: int = 3,
        queries: int = 1000,
        draws: int = 1000,
        autoattack: bool = False,
        radii: Sequence[float] = (),
        undefended: bool = False,
        owner: str = "Probes",
    ) -> None:
        _check_range(owner, eps, steps, restarts, queries, draws, radii)
        self.owner = owner
        self.eps = float(eps)
        self.radii = tuple(sorted({float(radius) for radius in radii} - {self.eps}))
        self.sources: dict[str, Attack] = {}
        if undefended:
            self.sources = {
                "fgsm_transfer": FGSM(eps=self.eps),
                "pgd_transfer": self._pgd(self.eps, steps, 1, stop=False),
            }
        self.search = RandomSearch(eps=self.eps, draws=draws)
        self.attacks: dict[str, Attack] = {
            "fgsm": FGSM(eps=self.eps),
            "rand_fgsm": RandFGSM(eps=self.eps),
            "pgd": self._pgd(self.eps, steps, restarts),
            "margin": APGD(eps=self.eps, steps=steps, restarts=restarts, objective="margin"),
            "square": Square(eps=self.eps, queries=queries),
            **({"autoattack": AutoAttack(eps=self.eps)} if autoattack else {}),
            "fgsm_margin": FGSM(eps=self.eps, objective="margin"),
            "pgd@1": self._pgd(1.0, steps, restarts),
        }
        for radius in self.radii:
            self.attacks[f"fgsm@{radius:.4g}"] = FGSM(eps=radius)
            self.attacks[f"pgd@{radius:.4g}"] = self._pgd(radius, steps, restarts)
        if self.radii:
            self.attacks["fgsm@1"] = FGSM(eps=1.0)

    def metric(self) -> MaskingCounts:
        """The counts that `batch` is for."""
        curves = [name for name in self.attacks if "@" in name and name != "pgd@1"]
        names = [name for name in self.attacks if name not in curves]
        return MaskingCounts([*names, *self.sources, *curves], ["random_search", "gradients"])

    def batch(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        undefended: nn.Module | None = None,
        seed: int = 0,
        after_each: Any = None,
    ) -> dict[str, Any]:
        """All that `MaskingCounts.update` takes, of one batch.

        Args:
            model: Maps images in [0, 1] to logits.
            images: ``(B, C, H, W)`` in [0, 1].
            labels: ``(B,)`` int64.
            undefended: The network of the transfer attack, on the same device.
            seed: Of the attacks; an image gets the same random numbers in any batch.
            after_each: Called after each attack.

        Raises:
            ValueError: The undefended network takes other images or has other classes.
        """
        if self.sources:
            assert undefended is not None
            check_comparable(self.owner, "undefended", undefended, model, images)
        right = predictions(model, images) == labels
        images, labels = images[right], labels[right]
        fooled: dict[str, Tensor] = {}
        passes: dict[str, Tensor] = {}
        one_step = images
        for name, attack in self.attacks.items():
            result = attack.run(model, images, labels, seed=seed)
            fooled[name], passes[name] = result.success, _passes(result)
            if name == "fgsm":
                one_step = result.images
            if after_each is not None:
                after_each()
        standing = ~fooled["pgd"]
        searched = self.search.run(model, images[standing], labels[standing], seed=seed)
        passes["random_search"] = _passes(searched)
        exchanged = torch.zeros(0, 2, dtype=torch.bool, device=images.device)
        if undefended is not None and self.sources:
            shared = predictions(undefended, images) == labels
            for name, attack in self.sources.items():
                result = attack.run(undefended, images, labels, seed=seed)
                fooled[name], passes[name] = predictions(model, result.images) != labels, _passes(result)
                if name == "fgsm_transfer":
                    crossed = predictions(undefended, one_step[shared]) != labels[shared]
                    exchanged = torch.stack([crossed, result.success[shared]], 1)
        zeros, gaps, classes, passes["gradients"] = _gradients(model, images, labels, self.eps)
        return {
            "right": right,
            "fooled": fooled,
            "passes": passes,
            "zeros": zeros,
            "entries": images[0].numel() if len(images) else 0,
            "gaps": gaps,
            "found": searched.success,
            "exchanged": exchanged,
            "classes": classes,
        }

    @staticmethod
    def _pgd(eps: float, steps: int, restarts: int, *, stop: bool = True) -> PGD:
        # what stops on its own boundary does not transfer
        return PGD(eps=eps, step_size=2.5 * eps / steps, steps=steps, restarts=restarts, stop_at_success=stop)


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    eps: float,
    undefended: nn.Module | None = None,
    *,
    steps: int = 50,
    restarts: int = 3,
    queries: int = 1000,
    draws: int = 1000,
    autoattack: bool = False,
    radii: Sequence[float] = (),
    thresholds: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    min_images: int = 50,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Accuracies under attacks that must agree, nine diagnostics of gradient masking, and a verdict.

    Only images that the model classifies rightly are attacked; the others count as not robust. The models are left as
    they were. Whoever runs several processes updates `MaskingCounts` by `Probes.batch`, as the callback
    ``RobustnessReport`` does.

    Args:
        model: Maps images in [0, 1] to logits.
        loader: Batches (images, labels): ``(B, C, H, W)`` in [0, 1] and ``(B,)`` int64.
        eps: Linf radius of all attacks in pixel units of [0, 1], in (0, 1).
        undefended: A network of the same kind trained without a defence; D3 and D4 want one.
        steps: Of PGD and Auto-PGD, at least 50.
        restarts: Of the two.
        queries: Of Square.
        draws: Of the random search (D6), at least 1000.
        autoattack: Whether AutoAttack runs too.
        radii: Further radii for FGSM and PGD.
        thresholds: In place of some of `THRESHOLDS`.
        confidence: Of all intervals, in (0, 1).
        min_images: With fewer images attacked there is no verdict, unless two signs are beyond their intervals.
        seed: Of the attacks; an image gets the same random numbers in any batch.
        device: Where to attack; None takes the model's.
        progress: Shows a progress bar.

    Raises:
        ValueError: An argument is out of range, or batches are of another kind.
    """
    limits = check_judgement("diagnose", thresholds, confidence, min_images)
    settings: dict[str, Any] = {"steps": steps, "restarts": restarts, "queries": queries, "draws": draws}
    probes = Probes(
        eps, autoattack=autoattack, radii=radii, undefended=undefended is not None, owner="diagnose", **settings
    )
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    metric = probes.metric().to(device)
    metric.nothing()
    total = len(loader) if isinstance(loader, Sized) else None
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("diagnosing", total=None if total is None else total * len(probes.attacks))
        for batch in loader:
            images, labels = pair("diagnose", batch)
            found = probes.batch(
                model, images.to(device), labels.to(device), undefended, seed, after_each=lambda: bar.advance(task)
            )
            metric.update(**found)
    return judge(metric.compute(), probes.eps, limits, confidence, min_images)


def check_judgement(
    owner: str, thresholds: Mapping[str, float] | None, confidence: float, min_images: int
) -> dict[str, float]:
    """All thresholds, those given in place of `THRESHOLDS`.

    Raises:
        ValueError: An unknown threshold, or a number out of range.
    """
    given = dict(thresholds or {})
    unknown = sorted(set(given) - set(THRESHOLDS))
    if unknown:
        raise ValueError(f"{owner}: thresholds must be of {', '.join(THRESHOLDS)}, got one for {unknown[0]}")
    for name, value in given.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{owner}: thresholds must be at least 0, got {value} for {name} (shares, not per cent)")
    if not 0 < confidence < 1:
        raise ValueError(f"{owner}: confidence must be in (0, 1), got {confidence} (0.95 is usual)")
    if min_images < 1:
        raise ValueError(f"{owner}: min_images must be at least 1, got {min_images}")
    return {**THRESHOLDS, **given}


def _check_range(
    owner: str, eps: float, steps: int, restarts: int, queries: int, draws: int, radii: Sequence[float]
) -> None:
    for field, radius in (("eps", eps), *(("radii", radius) for radius in radii)):
        if not 0 < radius < 1:
            hint = "8-bit levels are divided by 255: 8/255" if radius >= 1 else "at 0 there is nothing to compare"
            raise ValueError(f"{owner}: {field} must be in (0, 1), got {radius:g} ({hint})")
    if steps < 50:
        raise ValueError(f"{owner}: steps must be at least 50, got {steps} (a weak PGD looks like a robust network)")
    if draws < 1000:
        raise ValueError(f"{owner}: draws must be at least 1000, got {draws} (fewer find too little to tell)")
    for field, count in (("restarts", restarts), ("queries", queries)):
        if count < 1:
            raise ValueError(f"{owner}: {field} must be at least 1, got {count}")


def _gradients(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> tuple[Tensor, Tensor, int, Tensor]:
    """Zero entries of the cross-entropy's gradient ``(B,)``, relative linearisation gaps of the margin loss ``(B,)``,
    the number of classes, passes ``(B, 2)``."""
    if not len(images):
        none = torch.zeros(0, dtype=torch.float64, device=images.device)
        return labels.new_zeros(0), none, 0, labels.new_zeros(0, 2)
    with examined(model, images, labels) as problem:
        logits, _, slope = problem.gradient(problem.x, cross_entropy)
        zeros = (slope == 0).flatten(1).sum(1)
        # the attack lowers the margin; the loss J of D8 is its negative
        _, start, slope = problem.gradient(problem.x, margin)
        end = margin(problem.logits(problem.x - eps * slope.sign()), problem.classes, False)
        linear = eps * slope.flatten(1).abs().double().sum(1)
        gaps = (end.double() - start.double() + linear) / linear.clamp(min=1e-12)
    # what is not a number is far from linear, and a file holds no infinity
    gaps = gaps.nan_to_num(1e12, 1e12, -1e12)
    return zeros, gaps, logits.shape[1], problem.counts[1:].T.clone()


def _passes(result: AttackResult) -> Tensor:
    return torch.stack([result.forwards, result.backwards], 1)
