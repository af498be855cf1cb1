"""What an attack minimises: from logits ``(B, K)`` and goal classes ``(B,)`` to one loss a row, ``(B,)``.

The loss is the adversary's: lower is better for the attack, targeted or not. Untargeted, the goal class is the one to
leave; targeted, the one to reach. ``f1`` to ``f7`` are those of Carlini & Wagner 2017 (section V-A) with the signs of
f1 and f5 put right, so that each is at most 0 exactly when (f2, f3, f6, f7), or only if (f1, f4, f5), the attack has
succeeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

ObjectiveName = Literal["ce", "margin", "dlr", "f1", "f2", "f3", "f4", "f5", "f6", "f7"]
CarliniWagnerName = Literal["f1", "f2", "f3", "f4", "f5", "f6", "f7"]
Objective = Callable[[Tensor, Tensor, bool], Tensor]


def objective(name: str, owner: str = "objective", confidence: float = 0.0) -> Objective:
    """The objective of that name as a function of (logits, classes, targeted).

    Args:
        name: ``ce`` (cross-entropy), ``margin``, ``dlr`` (Croce & Hein 2020) or ``f1`` to ``f7``.
        owner: Who asks, for the error.
        confidence: Carlini and Wagner's kappa, in logits: ``f6`` goes down to ``-confidence``.

    Raises:
        ValueError: No such objective, or a confidence for one that has none.
    """
    if name not in _OBJECTIVES:
        raise ValueError(f"{owner}: objective must be one of {', '.join(_OBJECTIVES)}, got {name!r}")
    if not 0 <= confidence < math.inf or (confidence > 0 and name != "f6"):
        raise ValueError(f"{owner}: confidence must be 0 unless objective is f6 (there >= 0), got {confidence:g}")
    if name == "f6":
        return lambda logits, classes, targeted: margin(logits, classes, targeted).clamp(min=-confidence)
    return _OBJECTIVES[name]


def margin(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """How far the attack is from success: the competing logit minus the wanted one; negative once it has succeeded."""
    own, other = _own_and_best_other(logits, classes)
    return other - own if targeted else own - other


def cross_entropy(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """Cross-entropy to the target, or minus that of the class to leave."""
    loss = F.cross_entropy(logits, classes, reduction="none")
    return loss if targeted else -loss


def dlr(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    """Difference of logits ratio, Croce & Hein 2020 (equations 6 and 7); needs 3 classes, 4 where targeted.

    The targeted form leaves the class that is the prediction's best competitor of the target.
    """
    needed = 4 if targeted else 3
    if logits.shape[1] < needed:
        raise ValueError(
            f"objective dlr needs at least {needed} classes, the model has {logits.shape[1]} (use margin instead)"
        )
    ordered = logits.topk(needed, dim=1).values
    scale = ordered[:, 0] - (0.5 * (ordered[:, 2] + ordered[:, 3]) if targeted else ordered[:, 2])
    return margin(logits, classes, targeted) / (scale + 1e-12)


def _own_and_best_other(values: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    column = classes[:, None]
    # -inf, not a large number: a constant added to all logits must change nothing
    return values.gather(1, column)[:, 0], values.scatter(1, column, -math.inf).amax(1)


def _wanted_and_rival(values: Tensor, classes: Tensor, targeted: bool) -> tuple[Tensor, Tensor]:
    own, other = _own_and_best_other(values, classes)
    return (own, other) if targeted else (other, own)


def _f1(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    return -_wanted_and_rival(logits.log_softmax(1), classes, targeted)[0] / math.log(2) - 1


def _f2(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    wanted, rival = _wanted_and_rival(logits.softmax(1), classes, targeted)
    return (rival - wanted).relu()


def _f3(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    wanted, rival = _wanted_and_rival(logits.softmax(1), classes, targeted)
    return F.softplus(rival - wanted) - math.log(2)


def _f4(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    return (0.5 - _wanted_and_rival(logits.softmax(1), classes, targeted)[0]).relu()


def _f5(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    return -_wanted_and_rival(logits.log_softmax(1), classes, targeted)[0] - math.log(2)


def _f7(logits: Tensor, classes: Tensor, targeted: bool) -> Tensor:
    return F.softplus(margin(logits, classes, targeted)) - math.log(2)


_OBJECTIVES: dict[str, Objective] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "f1": _f1,
    "f2": _f2,
    "f3": _f3,
    "f4": _f4,
    "f5": _f5,
    "f6": margin,  # `objective` clamps it at -confidence
    "f7": _f7,
}
