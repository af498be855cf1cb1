"""Where a classifier looks, what an attacker changes, and the pixels that only the attacker needs.

Maps are graded; a region is a map above a threshold. For one class they add up to representatives and to a blob, the
pixels that may be blocked because the attack changes them and the classifier does not look at them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lit_adv.attacks.attack import _call, _untouched
from lit_adv.attacks.objectives import ObjectiveName, objective
from lit_adv.explain.cam import grad_cam, grad_cam_plus_plus
from lit_adv.metrics.checks import check_tensors

Cam = Literal["grad_cam", "grad_cam_plus_plus"]
_CAMS = {"grad_cam": grad_cam, "grad_cam_plus_plus": grad_cam_plus_plus}


class Regions(NamedTuple):
    """The four disjoint regions of an image, which cover it; U is the RoI and V the RoA.

    Attributes:
        both: UV, bool like the masks they are made of.
        importance_only: UV-, what the classifier looks at and the attack leaves.
        attack_only: U-V, what the attack changes and the classifier does not look at.
        neither: U-V-.
    """

    both: Tensor
    importance_only: Tensor
    attack_only: Tensor
    neither: Tensor


def importance_map(
    model: nn.Module, images: Tensor, classes: Tensor, *, cam: Cam = "grad_cam", layer: str | None = None
) -> Tensor:
    """How much each pixel speaks for a class: its class activation map.

    Args:
        model: From images to logits; it is left as it was.
        images: ``(B, C, H, W)`` in [0, 1], the clean ones.
        classes: ``(B,)`` int64, the source classes; not the predictions, which an attack changes.
        cam: Which activation map; see `grad_cam` and `grad_cam_plus_plus`.
        layer: Name of the layer; None takes the last maps; see `grad_cam`.

    Returns:
        ``(B, H, W)`` from 0 to 1, each image scaled by itself; all 0 where the activation is constant.

    Raises:
        ValueError: There is no such map or layer, or an argument is of another kind.
    """
    if cam not in _CAMS:
        raise ValueError(f"importance_map: cam must be one of {', '.join(_CAMS)}, got {cam!r}")
    return _CAMS[cam](model, images, classes, layer=layer)


def perturbation_map(images: Tensor, adversarial: Tensor, *, relative: bool = True) -> Tensor:
    """How far an attack has moved each pixel: the 2-norm over its channels.

    An attack of one sign step moves all pixels alike, but for those with a gradient of 0 and at the ends of the box, so
    that its map says nothing of importance: take one of several steps, or `gradient_map`.

    Args:
        images: ``(B, C, H, W)`` in [0, 1].
        adversarial: The same shape.
        relative: Divide by the largest value of each image.

    Returns:
        ``(B, H, W)``, in [0, 1] where relative, else in pixel units, at most sqrt(C). An image without a perturbation
        gives 0.

    Raises:
        ValueError: The arguments are no images, or of different shapes.
    """
    _check_images("perturbation_map", "images", images)
    if not isinstance(adversarial, Tensor) or adversarial.shape != images.shape:
        got = tuple(adversarial.shape) if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise ValueError(f"perturbation_map: adversarial must be of the shape {tuple(images.shape)}, got {got}")
    check_tensors("perturbation_map", {"images": images, "adversarial": adversarial})
    dtype = torch.promote_types(images.dtype, torch.float32)
    return _over_largest((adversarial.to(dtype) - images.to(dtype)).norm(dim=1), relative)


def gradient_map(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    targets: Tensor | None = None,
    objective_name: ObjectiveName = "ce",
    relative: bool = True,
) -> Tensor:
    """How much the attacker's loss depends on each pixel: the graded map of a sign attack, which throws this away.

    The 2-norm over the channels of the gradient of the loss at the clean image, one forward and one backward pass.

    Args:
        model: From images to logits; it is left as it was.
        images: ``(B, C, H, W)`` in [0, 1].
        labels: ``(B,)`` int64, the classes to leave.
        targets: ``(B,)`` int64, the classes to reach; None is untargeted.
        objective_name: The loss, as in the attacks.
        relative: Divide by the largest value of each image.

    Returns:
        ``(B, H, W)``, in [0, 1] where relative; 0 where the classifier is so sure that no gradient is left.

    Raises:
        ValueError: An argument is of another kind.
    """
    owner = "gradient_map"
    _check_images(owner, "images", images)
    goal = labels if targets is None else targets
    for field, classes in (("labels", labels), ("targets", goal)):
        if not isinstance(classes, Tensor) or classes.shape != images.shape[:1] or classes.dtype != torch.int64:
            raise ValueError(f"{owner}: {field} must be an int64 tensor of shape ({len(images)},), got {classes!r}")
        check_tensors(owner, {field: classes})
    loss = objective(objective_name, owner)
    dtype = torch.promote_types(images.dtype, torch.float32)
    if not len(images):
        return images.new_zeros(0, *images.shape[2:], dtype=dtype)
    with _untouched(model) as inner:
        x = images.detach().clone().to(dtype).requires_grad_()
        logits = _call(inner, x).to(dtype)
        if bool(((goal < 0) | (goal >= logits.shape[1])).any()):
            field = "labels" if targets is None else "targets"
            raise ValueError(f"{owner}: {field} must be in [0, {logits.shape[1]}), got {goal.tolist()}")
        total = loss(logits, goal.clone(), targets is not None).sum()
        # a model that does not look at its input has no graph
        gradient = torch.zeros_like(x)
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, x, allow_unused=True, materialize_grads=True)
    return _over_largest(gradient.nan_to_num(0.0).norm(dim=1), relative)


def region_of_importance(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    delta: float = 0.5,
    *,
    cam: Cam = "grad_cam",
    layer: str | None = None,
) -> Tensor:
    """RoI: the pixels whose `importance_map` is at least ``delta``.

    Args:
        model: See `importance_map`, as for the other arguments.
        images: See there.
        classes: See there.
        delta: delta1, on the map's scale of [0, 1]; 0 and less take every pixel, more than 1 none.
        cam: See there.
        layer: See there.

    Returns:
        ``(B, H, W)`` bool.
    """
    _check_threshold("region_of_importance", "delta", delta)
    return importance_map(model, images, classes, cam=cam, layer=layer) >= delta


def region_of_attack(images: Tensor, adversarial: Tensor, delta: float = 0.5, *, relative: bool = True) -> Tensor:
    """RoA: the pixels whose `perturbation_map` is at least ``delta``.

    Args:
        images: ``(B, C, H, W)`` in [0, 1].
        adversarial: The same shape.
        delta: delta2: a share of the image's largest perturbation, or, with ``relative=False``, in pixel units.
        relative: See `perturbation_map`.

    Returns:
        ``(B, H, W)`` bool.
    """
    _check_threshold("region_of_attack", "delta", delta)
    return perturbation_map(images, adversarial, relative=relative) >= delta


def four_regions(importance: Tensor, attack: Tensor) -> Regions:
    """Both, one, the other and neither of two masks.

    Args:
        importance: RoI, bool of any shape.
        attack: RoA, bool of the same shape.

    Raises:
        ValueError: They are not bool, or of different shapes.
    """
    _check_masks("four_regions", importance, attack)
    return Regions(importance & attack, importance & ~attack, ~importance & attack, ~importance & ~attack)


def representative(masks: Tensor) -> Tensor:
    """The share of a class' images that have each pixel in their region; above 0 lies the regions' union.

    Args:
        masks: ``(N, H, W)`` bool, N at least 1.

    Returns:
        ``(H, W)`` float64 in [0, 1].

    Raises:
        ValueError: There is no mask, or they are not bool.
    """
    _check_stack("representative", masks)
    return shares(masks.sum(0), len(masks))


def blob_of_masks(importance: Tensor, attack: Tensor, theta: float = 0.5) -> Tensor:
    """The pixels that at least a share ``theta`` of the images have in U-V, outside the RoI and inside the RoA.

    Args:
        importance: RoI of the class' images, ``(N, H, W)`` bool, N at least 1.
        attack: RoA, the same shape.
        theta: Share in [0, 1]; 0 and less take every pixel, more than 1 none.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ValueError: There is no mask, they are not bool, or of different shapes.
    """
    _check_masks("blob_of_masks", importance, attack)
    _check_threshold("blob_of_masks", "theta", theta)
    return representative(~importance & attack) >= theta


def blob_of_representatives(importance: Tensor, attack: Tensor, theta: float = 0.5) -> Tensor:
    """The pixels whose representative is at least ``theta`` for the RoA and less than that for the RoI.

    Args:
        importance: R_I, ``(H, W)`` in [0, 1].
        attack: R_A, the same shape.
        theta: Of both.

    Returns:
        ``(H, W)`` bool.

    Raises:
        ValueError: They are no shares, or of different shapes, or theta is not finite.
    """
    owner = "blob_of_representatives"
    for field, share in (("importance", importance), ("attack", attack)):
        if not isinstance(share, Tensor) or share.ndim != 2 or not share.is_floating_point():
            got = f"{share.dtype} of shape {tuple(share.shape)}" if isinstance(share, Tensor) else type(share).__name__
            raise ValueError(f"{owner}: {field} must be shares (H, W), as `representative` gives them, got {got}")
    check_tensors(owner, {"importance": importance, "attack": attack})
    if importance.shape != attack.shape:
        raise ValueError(
            f"{owner}: attack must have the shape of importance, got {tuple(attack.shape)} and "
            f"{tuple(importance.shape)} (representatives of the same images)"
        )
    _check_threshold(owner, "theta", theta)
    return (attack >= theta) & (importance < theta)


def attack_only_counts(
    importance: Tensor, attack: Tensor, deltas1: Sequence[float], deltas2: Sequence[float]
) -> Tensor:
    """In how many images each pixel lies in U-V, for every pair of thresholds at once.

    Counts of batches, or of processes, add up; over the number of images they are the shares that `blob_of_masks` asks
    for.

    Args:
        importance: Graded, ``(N, H, W)``.
        attack: Graded, the same shape.
        deltas1: D1 thresholds of ``importance``.
        deltas2: D2 thresholds of ``attack``.

    Returns:
        ``(D1, D2, H, W)`` int64.
    """
    _check_maps("attack_only_counts", {"importance": importance, "attack": attack})
    outside = ~_above(importance, deltas1)
    inside = _above(attack, deltas2)
    total = importance.new_zeros(len(deltas1), len(deltas2), *importance.shape[1:], dtype=torch.int64)
    # a share of the images at a time, as the masks of all thresholds are many times their maps
    step = max(1, 2**24 // max(1, outside[:1].numel() + inside[:1].numel()))
    for some, others in zip(outside.split(step), inside.split(step), strict=True):
        # sums of at most 2^24 ones are exact in float32
        total += torch.einsum("nahw,nbhw->abhw", some.float(), others.float()).long()
    return total


def mask_counts(maps: Tensor, deltas: Sequence[float]) -> Tensor:
    """In how many images each pixel lies in the region, for every threshold: ``(D, H, W)`` int64 of ``(N, H, W)``."""
    _check_maps("mask_counts", {"maps": maps})
    return _above(maps, deltas).sum(0)


def shares(counts: Tensor, images: int) -> Tensor:
    """Counts as shares of the images, in float64: k of n compares equal to the number k/n."""
    return counts.double() / images


def _above(maps: Tensor, deltas: Sequence[float]) -> Tensor:
    # in the maps' own precision, as a comparison with a single number is
    return maps[:, None] >= maps.new_tensor(list(deltas))[:, None, None]


def _over_largest(maps: Tensor, relative: bool) -> Tensor:
    if not relative or not len(maps):
        return maps
    largest = maps.flatten(1).amax(1)[:, None, None]
    return maps / torch.where(largest == 0, 1.0, largest)


def _check_images(owner: str, field: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{owner}: {field} must be a floating-point tensor (B, C, H, W) in [0, 1], got {got}")
    if len(images) and not images.numel():
        raise ValueError(f"{owner}: {field} must have pixels, got shape {tuple(images.shape)}")
    check_tensors(owner, {field: images})


def _check_maps(owner: str, maps: dict[str, Tensor]) -> None:
    check_tensors(owner, maps)
    first = next(iter(maps))
    for field, each in maps.items():
        if each.ndim != 3 or not each.is_floating_point() or each.shape != maps[first].shape:
            same = "" if field == first else f" of the shape of {first}, {tuple(maps[first].shape)}"
            raise ValueError(
                f"{owner}: {field} must be floating-point maps (N, H, W){same}, got {each.dtype} of shape "
                f"{tuple(each.shape)}"
            )


def _check_masks(owner: str, importance: Tensor, attack: Tensor) -> None:
    for field, mask in (("importance", importance), ("attack", attack)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"{owner}: {field} must be a bool tensor, got {got} (compare a map with a threshold)")
    check_tensors(owner, {"importance": importance, "attack": attack})
    if importance.shape != attack.shape:
        raise ValueError(
            f"{owner}: attack must have the shape of importance, got {tuple(attack.shape)} and "
            f"{tuple(importance.shape)} (regions of the same images)"
        )


def _check_stack(owner: str, masks: Tensor) -> None:
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.ndim != 3 or not len(masks):
        got = f"{masks.dtype} of shape {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(f"{owner}: masks must be bool of shape (N, H, W) with N at least 1, got {got}")
    check_tensors(owner, {"masks": masks})


def _check_threshold(owner: str, field: str, threshold: float) -> None:
    # nothing is at least NaN: the region would be empty without a word
    if not isinstance(threshold, int | float) or not math.isfinite(threshold):
        raise ValueError(f"{owner}: {field} must be a finite number, got {threshold!r} (0.5 is in the middle)")
