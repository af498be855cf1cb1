"""How often what fools one classifier fools another, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import check_names


class TransferMatrix(Metric):
    """Transferability of adversarial images, source by victim (Ozbulak et al., regional perturbations).

    A cell is the share of the attempted images (those that source and victim both classify rightly) that fool the
    victim, with mean and standard deviation (of the population) of the perturbations that do: L0 (share of the pixels),
    L2 and Linf. Where a reference is given, the same images under the global attack, it also tells which share of what
    transfers there still does, and which share of the images that transfer under both have a smaller L0, L2, Linf. All
    states are sums, so that several processes give the numbers of one.

    Args:
        sources: Names of the classifiers attacked.
        victims: Names of those tested.
        **kwargs: Arguments of `torchmetrics.Metric`.
    """

    NORMS = ("l0", "l2", "linf")

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    images: Tensor
    attempted: Tensor
    transferred: Tensor
    iterations: Tensor
    sums: Tensor
    squares: Tensor
    referred: Tensor
    compared: Tensor
    reduced: Tensor
    forwards: Tensor
    backwards: Tensor

    def __init__(self, sources: Sequence[str], victims: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources = check_names("TransferMatrix", "sources", sources)
        self.victims = check_names("TransferMatrix", "victims", victims)
        shape, norms = (len(self.sources), len(self.victims)), (len(self.NORMS),)
        for name in ("images", "forwards", "backwards"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        for name in ("attempted", "transferred", "iterations", "referred", "compared"):
            self.add_state(name, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("reduced", torch.zeros(norms + shape, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("sums", "squares"):
            self.add_state(name, torch.zeros(norms + shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, result: Any, reference: Any = None) -> None:
        """Count a batch of B images.

        Args:
            result: A `lit_adv.attacks.TransferResult`, or anything with its fields.
            reference: The same images under the global attack.

        Raises:
            ValueError: A result of other sources, victims or images.
        """
        shape = (len(self.sources), len(self.victims))
        for name, given in (("result", result), ("reference", reference)):
            if given is not None and given.attempted.shape != (*shape, len(result.forwards)):
                raise ValueError(
                    f"TransferMatrix: {name} must be of {shape[0]} sources, {shape[1]} victims and"
                    f" {len(result.forwards)} images, got {tuple(given.attempted.shape)}"
                )
        success = result.success
        self.images += len(result.forwards)
        self.forwards += result.forwards.sum()
        self.backwards += result.backwards.sum()
        self.attempted += result.attempted.sum(-1)
        self.transferred += success.sum(-1)
        self.iterations += result.iterations.sum(-1)
        if reference is not None:
            self.referred += reference.success.sum(-1)
            self.compared += (success & reference.success).sum(-1)
        for number, name in enumerate(self.NORMS):
            sizes = result.norms[name].double()
            counted = torch.where(success, sizes, 0.0)
            self.sums[number] += counted.sum(-1)
            self.squares[number] += counted.square().sum(-1)
            if reference is not None:
                # NaN where either has failed, which is smaller than nothing
                self.reduced[number] += (sizes < reference.norms[name].double()).sum(-1)

    def compute(self) -> dict[str, Any]:
        """The matrices as plain numbers.

        Returns:
            ``images``, ``sources``, ``victims``, ``forwards`` and ``backwards`` (all passes an image, over all
            models), and matrices, source by victim, as lists of rows, None where there is nothing to divide by:
            ``attempted`` and ``transferred`` (images), ``transferability`` (share, in [0, 1]), ``iterations`` (mean),
            ``l0``, ``l2``, ``linf`` (means) and ``l0_std``, ``l2_std``, ``linf_std`` of what transfers; ``referred``
            (images that transfer under the reference), ``compared`` (those that do under both), ``kept`` (their share),
            and ``l0_reduced``, ``l2_reduced``, ``linf_reduced`` (shares of the compared).
        """
        images = int(self.images)
        found: dict[str, Any] = {"images": images, "sources": list(self.sources), "victims": list(self.victims)}
        for name in ("forwards", "backwards"):
            found[name] = int(getattr(self, name)) / images if images else None
        found |= {name: getattr(self, name).tolist() for name in ("attempted", "transferred", "referred", "compared")}
        found["transferability"] = _ratios(self.transferred, self.attempted)
        found["kept"] = _ratios(self.compared, self.referred)
        found["iterations"] = _ratios(self.iterations, self.transferred)
        for number, name in enumerate(self.NORMS):
            found[name] = _ratios(self.sums[number], self.transferred)
            count = self.transferred.clamp(min=1)
            mean = self.sums[number] / count
            variance = (self.squares[number] / count - mean.square()).clamp(min=0)
            found[f"{name}_std"] = _ratios(variance.sqrt() * count, self.transferred)
            found[f"{name}_reduced"] = _ratios(self.reduced[number], self.compared)
        return found


def summary(found: Mapping[str, Any]) -> dict[str, float | None]:
    """What all pairs of a source with another victim come to, as the slides sum up.

    Args:
        found: From `TransferMatrix.compute`.

    Returns:
        ``transferability``, ``kept``, ``l0_reduced``, ``l2_reduced``, ``linf_reduced``: of all images of all these
        pairs together, None where there is none. A victim of the source's own name is left out.
    """
    pairs = [
        (row, column)
        for row, source in enumerate(found["sources"])
        for column, victim in enumerate(found["victims"])
        if source != victim
    ]

    def total(name: str) -> int:
        return sum(found[name][row][column] for row, column in pairs)

    whole: dict[str, float | None] = {
        "transferability": total("transferred") / total("attempted") if total("attempted") else None,
        "kept": total("compared") / total("referred") if total("referred") else None,
    }
    for name in TransferMatrix.NORMS:
        cells = ((found[f"{name}_reduced"][row][column] or 0) * found["compared"][row][column] for row, column in pairs)
        whole[f"{name}_reduced"] = sum(cells) / total("compared") if total("compared") else None
    return whole


def _ratios(totals: Tensor, counts: Tensor) -> list[list[float | None]]:
    return [
        [total / count if count else None for total, count in zip(*rows, strict=True)]
        for rows in zip(totals.tolist(), counts.tolist(), strict=True)
    ]
