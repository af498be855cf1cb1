"""Parameter saliency over a data set: what is usual for each filter, and the profile of an attack over the layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics import Metric

from lit_adv.metrics.checks import ratio_dtype


class SaliencyStatistics(Metric):
    """Mean and unbiased standard deviation of each filter's saliency, over clean images with their true labels.

    Batches are merged, and processes at the end, by the formulas of Chan, Golub and LeVeque (1979), in float64. A
    standard deviation of at most 1e-14 counts as 1.

    Args:
        layers: Filters of each layer, from `filter_layers`.
        network: Fingerprint of the network that the saliency is of, from `lit_adv.models.fingerprint`.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: There is no layer, or a layer without a filter.
    """

    full_state_update = False
    is_differentiable = False
    moments: Tensor

    def __init__(self, layers: Mapping[str, int], network: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = check_layers("SaliencyStatistics", layers)
        self.network = network
        # images, mean and sum of squared deviations in one tensor, since they can be merged only together
        start = torch.zeros(3, sum(self.layers.values()), dtype=torch.float64)
        self.add_state("moments", start, dist_reduce_fx=_merged)

    def update(self, saliency: Tensor) -> None:
        """Count the saliency ``(B, K)`` of a batch of images; an empty one is fine.

        Raises:
            ValueError: It does not fit the layers.
        """
        check_profile("SaliencyStatistics", saliency, self.layers)
        if not len(saliency):
            return
        values = saliency.detach().to(ratio_dtype(saliency.device))
        mean = values.mean(0)
        batch = torch.stack([torch.full_like(mean, len(values)), mean, (values - mean).square().sum(0)])
        self.moments = _merged(torch.stack([self.moments.to(batch.dtype), batch]))

    def compute(self) -> dict[str, Tensor]:
        """Return ``images``, a scalar int64, and ``mean``, ``std`` and ``spread`` ``(K,)`` in float64.

        ``spread`` is the standard deviation as it is, also where ``std`` is 1 in its place.

        Raises:
            ValueError: Fewer than two images have been seen.
        """
        count, mean, squares = self.moments
        images = int(count[0])
        if images < 2:
            raise ValueError(f"SaliencyStatistics: a standard deviation needs two images, got {images}")
        std = (squares / (images - 1)).sqrt()
        counted = torch.where(std > 1e-14, std, 1.0)
        return {"images": count[0].long(), "mean": mean.clone(), "std": counted, "spread": std}

    def deviations(self, floor: float = 0.0) -> Tensor:
        """Standard deviations ``(K,)`` in float64, none of them below a share of its layer's root mean square.

        A filter that a network does not use on clean images has a deviation near 0, and the smallest gradient of an
        attacked image is then millions of deviations: without a floor such a filter alone decides the profile.

        Args:
            floor: That share, in [0, 1]; 0 leaves all as they are (Souri et al. 2021).

        Raises:
            ValueError: The floor is out of range, or fewer than two images have been seen.
        """
        check_floor("SaliencyStatistics", floor)
        found = self.compute()
        least = self._least(found["spread"], floor)
        # a whole layer may be without a deviation
        return torch.where(least > 1e-14, found["spread"].maximum(least), found["std"])

    def rare(self, share: float = 0.01) -> Tensor:
        """Which filters ``(K,)`` bool deviate by less than a share of their layer's root mean square."""
        spread: Tensor = self.compute()["spread"]
        return spread < self._least(spread, share)

    def standardise(self, saliency: Tensor, absolute: bool = False, floor: float = 0.0) -> Tensor:
        """Saliency in standard deviations above the mean.

        Args:
            saliency: ``(B, K)``, of the same network.
            absolute: Its absolute value, equation 6 of Souri et al. 2021; their code has the sign, without which a
                filter that matters less than usual looks salient.
            floor: See `deviations`.

        Returns:
            ``(B, K)`` in the precision of the saliency.
        """
        check_profile("SaliencyStatistics", saliency, self.layers)
        mean, std = (each.to(saliency.device) for each in (self.compute()["mean"], self.deviations(floor)))
        profile = ((saliency.to(mean.dtype) - mean) / std).to(saliency.dtype)
        return profile.abs() if absolute else profile

    def _least(self, spread: Tensor, share: float) -> Tensor:
        """That share of the root mean square of each filter's layer, ``(K,)``."""
        parts = spread.split(list(self.layers.values()))
        return share * torch.cat([part.square().mean().sqrt().expand_as(part) for part in parts])

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with the moments, the layers and the fingerprint.

        Collective: where there are several processes, each calls it, and the first one writes.
        """
        with self.sync_context():
            moments = self.moments.detach().cpu().double().contiguous()
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        about = {"network": self.network, "layers": json.dumps(self.layers)}
        save_file({"moments": moments}, path, about)

    @classmethod
    def load(cls, path: str | Path, network: str) -> SaliencyStatistics:
        """Statistics that were saved; they count as whole, whatever the number of processes.

        Args:
            path: The file.
            network: Fingerprint of the network that they are to be used with.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, or of another network.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"SaliencyStatistics: there is no file '{path}' (save() writes one)")
        try:
            with safe_open(path, "pt") as file:
                about, moments = file.metadata(), file.get_tensor("moments")
            layers, saved = json.loads(about["layers"]), about["network"]
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"SaliencyStatistics: '{path}' is damaged or no file of statistics ({error})") from error
        if saved != network:
            raise ValueError(
                f"SaliencyStatistics: '{path}' belongs to a network of other weights, {saved[:12]}… and not "
                f"{network[:12]}… (compute the statistics of this one)"
            )
        loaded = cls(layers, network, sync_on_compute=False)
        if moments.shape != loaded.moments.shape:
            raise ValueError(
                f"SaliencyStatistics: '{path}' is damaged: {tuple(moments.shape)} for {len(layers)} layers"
            )
        # so that torchmetrics does not warn that nothing has been seen
        loaded.update(torch.zeros(0, moments.shape[1]))
        loaded.moments = moments
        return loaded


class SaliencyProfileMean(Metric):
    """Mean saliency profile of many images, in both orders of sorting and averaging (Souri et al. 2021, section 5.1).

    A curve has the filters of each layer in descending order, layer behind layer. ``sort_then_mean`` sorts each image's
    profile before the mean, as the paper does; its peaks grow with the spread among images, also where they do not
    agree on any filter. ``mean_then_sort`` sorts the mean profile.

    Args:
        layers: Filters of each layer, from `filter_layers`.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: There is no layer, or a layer without a filter.
    """

    ORDERS = ("sort_then_mean", "mean_then_sort")

    full_state_update = False
    is_differentiable = False
    sums: Tensor
    total: Tensor

    def __init__(self, layers: Mapping[str, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layers = check_layers("SaliencyProfileMean", layers)
        # signed and absolute, each as it is and sorted; then the positive part
        start = torch.zeros(5, sum(self.layers.values()), dtype=torch.float64)
        self.add_state("sums", start, dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, profile: Tensor) -> None:
        """Count a batch of signed standardised profiles ``(B, K)``, from `SaliencyStatistics`; an empty one is fine.

        Raises:
            ValueError: It does not fit the layers.
        """
        check_profile("SaliencyProfileMean", profile, self.layers)
        signed = profile.detach().to(ratio_dtype(profile.device))
        absolute = signed.abs()
        kinds = signed, self._sorted(signed), absolute, self._sorted(absolute), signed.clamp(min=0)
        self.sums = self.sums + torch.stack([kind.sum(0) for kind in kinds])
        self.total = self.total + len(profile)

    def compute(self) -> dict[str, Any]:
        """Return the curves and what they come to; nan where nothing has been seen.

        Returns:
            ``signed`` and ``absolute``: for each of `ORDERS` a curve ``(K,)`` in standard deviations. Of the signed
            profiles: ``mean``, a scalar; ``layers``, the mean of each layer ``(L,)``; ``shares``, each filter's share
            of all positive saliency ``(K,)``, not sorted; ``first_third`` and ``last_third``, those of the first and of
            the last third of the layers. ``images``, a scalar int64.
        """
        means = self.sums / self.total
        sizes = list(self.layers.values())
        positive = torch.stack([part.sum() for part in self.sums[4].split(sizes)])
        third = max(1, round(len(sizes) / 3))
        return {
            "signed": {"sort_then_mean": means[1], "mean_then_sort": self._sorted(means[:1])[0]},
            "absolute": {"sort_then_mean": means[3], "mean_then_sort": self._sorted(means[2:3])[0]},
            "mean": means[0].mean(),
            "layers": torch.stack([part.mean() for part in means[0].split(sizes)]),
            "shares": self.sums[4] / self.sums[4].sum(),
            "first_third": positive[:third].sum() / positive.sum(),
            "last_third": positive[-third:].sum() / positive.sum(),
            "images": self.total.clone(),
        }

    def _sorted(self, profiles: Tensor) -> Tensor:
        parts = profiles.split(list(self.layers.values()), 1)
        return torch.cat([part.sort(1, descending=True).values for part in parts], 1)


def check_layers(owner: str, layers: Mapping[str, int]) -> dict[str, int]:
    """Return the layers as a dictionary; ValueError where there is none, or one without a filter."""
    if not layers or any(size < 1 for size in layers.values()):
        raise ValueError(f"{owner}: layers must be one or more names with their filters, got {dict(layers)}")
    return dict(layers)


def check_floor(owner: str, floor: float) -> None:
    """Raises ValueError unless it is a share."""
    if not 0 <= floor <= 1:
        raise ValueError(
            f"{owner}: floor must be in [0, 1], got {floor} (a share of the deviations in a filter's layer, e.g. 0.01)"
        )


def check_profile(owner: str, values: Tensor, layers: Mapping[str, int]) -> None:
    """Raises ValueError unless there is a floating-point row for each image and a column for each filter."""
    filters = sum(layers.values())
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape[1:] != (filters,):
        got = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{owner}: saliency must be a floating-point tensor (B, {filters}), got {got}")


def _merged(moments: Tensor) -> Tensor:
    """Moments ``(n, 3, K)`` of n disjoint sets, as those of their union ``(3, K)``."""
    counts, means, squares = moments.unbind(1)
    total = counts.sum(0)
    weights = counts / total.clamp(min=1)
    mean = (weights * means).sum(0)
    return torch.stack([total, mean, squares.sum(0) + (counts * (means - mean).square()).sum(0)])
