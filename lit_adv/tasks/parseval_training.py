"""Training of Parseval networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import pytorch_lightning as pl

from lit_adv.models.classifier import ClassifierName
from lit_adv.models.parseval import WideResNetName
from lit_adv.tasks.parseval_retraction import ParsevalRetraction, constrained
from lit_adv.tasks.victim_classifier import VictimClassifier


class ParsevalTraining(VictimClassifier):
    """Trains a Parseval network (Cisse et al. 2017, arXiv:1704.08847), whose layers hardly enlarge a difference.

    A `VictimClassifier` with two changes: after each step of the optimiser `ParsevalRetraction` takes weights and
    coefficients back to their constraints, and constrained weights have a weight decay of their own, none by default.
    The published settings: SGD with momentum 0.9, batches of 128, 200 epochs, learning rate 0.1 times 0.2 after epochs
    60, 120 and 160. The same network without constraints (`wrn16_4` for `parseval_wrn16_4`) is `VictimClassifier`'s.

    Args:
        name: The architecture, one that begins with `parseval_`.
        num_classes: K; None takes the data module's, as for the next two.
        image_size: Side of the images in pixels.
        in_channels: C.
        weights: Weights to start from: None (random), or the path of a state_dict.
        mean: One number a channel on the scale of `[0, 1]`; None is ImageNet's for colour, 0.5 otherwise.
        std: The same.
        learning_rate: Of SGD.
        momentum: Nesterov's; 0 switches it off.
        weight_decay: On all parameters without a constraint.
        milestones: Epochs at whose end the learning rate is multiplied by `gamma`.
        gamma: That factor.
        label_smoothing: Share of the target spread over all classes, in `[0, 1)`; in training only.
        beta: Length of the step back to tight frames, in (0, 0.5]; raise it until singular values stay within 5 % of 1.
        rows: Share of the rows (of a weight's shorter side) that take each step, in (0, 1].
        constrained_weight_decay: On the weights that are to be tight frames; coefficients of sums have none.

    Raises:
        ValueError: A field is out of range; later, that it contradicts the data or a checkpoint.
    """

    def __init__(
        self,
        name: ClassifierName = "parseval_wrn16_4_bn",
        num_classes: int | None = None,
        image_size: int | None = None,
        in_channels: int | None = None,
        weights: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        milestones: tuple[int, ...] = (60, 120, 160),
        gamma: float = 0.2,
        label_smoothing: float = 0.0,
        beta: float = 3e-4,
        rows: float = 1.0,
        constrained_weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            name,
            num_classes,
            image_size,
            in_channels,
            weights,
            mean,
            std,
            learning_rate,
            momentum,
            weight_decay,
            milestones,
            gamma,
            label_smoothing,
        )
        if not name.startswith("parseval_"):
            known = [each for each in get_args(WideResNetName) if each.startswith("parseval_")]
            raise ValueError(
                f"{self._name}: name must be a Parseval network ({', '.join(known)}), got '{name}' (VictimClassifier"
                " trains the others)"
            )
        self._check_range(
            "constrained_weight_decay", constrained_weight_decay, "at least 0", constrained_weight_decay >= 0
        )
        # refuses beta and rows before anything is trained
        ParsevalRetraction(beta, rows)

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """The retraction; takes the place of one that the trainer was given.

        Raises:
            ValueError: See `check_trainer`; or the weights are to be of 16 bits.
        """
        precision = self.trainer.precision
        if precision in ("16-true", "bf16-true"):
            raise ValueError(
                f"{self._name}: trainer.precision must keep the weights in 32 bits, got {precision}: frames are not"
                f" orthogonal in 16 (--trainer.precision={precision.removesuffix('true')}mixed)"
            )
        return [*super().configure_callbacks(), ParsevalRetraction(self.hparams["beta"], self.hparams["rows"])]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Free parameters; constrained weights; coefficients of residual sums."""
        frames, rows, sums = constrained(self.model)
        weights = [*frames, *rows]
        coefficients = [each.coefficients for each in sums]
        bound = {id(parameter) for parameter in [*weights, *coefficients]}
        free = [parameter for parameter in self.model.parameters() if id(parameter) not in bound]
        return [
            {"params": free},
            {"params": weights, "weight_decay": self.hparams["constrained_weight_decay"]},
            {"params": coefficients, "weight_decay": 0.0},
        ]
