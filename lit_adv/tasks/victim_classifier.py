"""Training of the classifiers that are attacked."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_adv.models import Classifier
from lit_adv.models.classifier import ClassifierName, check_name
from lit_adv.tasks.demands import check_synchronised, check_trainer
from lit_adv.tasks.finite import FiniteTraining
from lit_adv.tasks.resuming import apply_settings, changed_settings

Batch = tuple[Tensor, Tensor]


class VictimClassifier(pl.LightningModule):
    """Trains a classifier on clean images with cross-entropy (REDRL, section 4.6: SGD with Nesterov momentum).

    Logs `train/loss`, `val/loss`, `val/acc` and `test/acc`. Checkpoints hold what
    `lit_adv.models.load_classifier` needs, under the key `classifier`.

    Args:
        name: The architecture.
        num_classes: K; None takes the data module's, as for the next two.
        image_size: Side of the images in pixels.
        in_channels: C.
        weights: Weights to start from: None (random), "imagenet", or the path of a state_dict.
        mean: One number a channel on the scale of `[0, 1]`; None is ImageNet's for colour, 0.5 otherwise.
        std: The same.
        learning_rate: Of SGD.
        momentum: Nesterov's; 0 switches it off.
        weight_decay: On all parameters.
        milestones: Epochs at whose end the learning rate is multiplied by `gamma`.
        gamma: That factor.
        label_smoothing: Share of the target spread over all classes, in `[0, 1)`; in training only.

    Attributes:
        model: The `Classifier`, once `configure_model` has run.

    Raises:
        ValueError: A field is out of range; later, that it contradicts the data or a checkpoint.
    """

    monitor = "val/acc"
    monitor_mode = "max"
    objects: tuple[str, ...] = ()  # arguments of a subclass that are no plain values, and so in no checkpoint

    def __init__(
        self,
        name: ClassifierName,
        num_classes: int | None = None,
        image_size: int | None = None,
        in_channels: int | None = None,
        weights: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        milestones: tuple[int, ...] = (25, 40),
        gamma: float = 0.1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_name(name, self._name)
        self._check_range("learning_rate", learning_rate, "above 0", learning_rate > 0)
        self._check_range("momentum", momentum, "in [0, 1)", 0 <= momentum < 1)
        self._check_range("weight_decay", weight_decay, "at least 0", weight_decay >= 0)
        self._check_range("gamma", gamma, "above 0", gamma > 0)
        self._check_range("label_smoothing", label_smoothing, "in [0, 1)", 0 <= label_smoothing < 1)
        self.save_hyperparameters(ignore=list(self.objects))
        self.model: Classifier
        self.val_loss = MeanMetric()
        self._changed: set[str] = set()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of images `(B, C, H, W)` in `[0, 1]`."""
        logits: Tensor = self.model(images)
        return logits

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy, which other ways of training replace: `()` of images `(B, C, H, W)` and labels `(B,)`."""
        return F.cross_entropy(self(images), labels, label_smoothing=self.hparams["label_smoothing"])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains: groups of `params`, each with its own `weight_decay` if it has one."""
        return [{"params": list(self.model.parameters())}]

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """Stops training that has lost its numbers; refuses a trainer that the task cannot work with.

        Raises:
            ValueError: See `check_trainer`.
        """
        check_trainer(self)
        return [FiniteTraining()]

    def configure_model(self) -> None:
        """Builds the network; what the arguments leave open comes from the data module.

        Raises:
            ValueError: An argument contradicts the data module, or neither says what the network needs.
        """
        if self._built:
            self._check_synchronised()
            return
        # a checkpoint is being read outside a trainer: on_load_checkpoint knows all that is left open
        if self._trainer is None and any(self.hparams[field] is None for field in _DATA_FIELDS):
            return
        arguments: dict[str, Any] = {field: self._from_data(field) for field in _DATA_FIELDS}
        arguments |= {field: self.hparams[field] for field in ("name", "weights", "mean", "std")}
        self._build(Classifier(**arguments))
        self._check_synchronised()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """`training_loss` of one batch."""
        images, labels = batch
        loss = self.training_loss(images, labels)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts loss and accuracy."""
        images, labels = batch
        logits = self(images)
        losses = F.cross_entropy(logits, labels, reduction="none")
        self._check_finite(losses, images, "validation", batch_idx)
        # metric objects, not numbers: averages of batches are wrong where ranks have unequal shares
        self.val_loss.update(losses)
        self.val_accuracy.update(logits, labels)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))
        self.log("val/acc", self.val_accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts accuracy."""
        images, labels = batch
        logits = self(images)
        self._check_finite(logits, images, "test", batch_idx)
        self.test_accuracy.update(logits, labels)
        self.log("test/acc", self.test_accuracy, on_step=False, on_epoch=True, batch_size=len(images))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Predicted classes `(B,)`."""
        logits: Tensor = self(batch[0])
        return logits.argmax(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with Nesterov momentum, and a step-wise falling learning rate."""
        momentum = self.hparams["momentum"]
        optimizer = torch.optim.SGD(
            self.parameter_groups(),
            lr=self.hparams["learning_rate"],
            momentum=momentum,
            nesterov=momentum > 0,
            weight_decay=self.hparams["weight_decay"],
        )
        milestones = list(self.hparams["milestones"])
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, self.hparams["gamma"])
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        """Lets the run's own learning rate, decay and milestones win over a checkpoint's."""
        hparams = self.hparams
        settings = {
            "lr": hparams["learning_rate"],
            "momentum": hparams["momentum"],
            "nesterov": hparams["momentum"] > 0,
            "weight_decay": hparams["weight_decay"],
        }
        groups = self.parameter_groups()
        apply_settings(
            self, self._changed, [settings | {k: v for k, v in each.items() if k != "params"} for each in groups]
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the description of the network, with which others can load it."""
        checkpoint["classifier"] = dict(self.model.spec)
        # the checkpoint has its own weights now; the file they started from may be gone when it is read
        checkpoint["hyper_parameters"]["weights"] = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses the checkpoint of another network.

        Raises:
            ValueError: The checkpoint holds no classifier, or another one.
        """
        spec = checkpoint.get("classifier")
        if not isinstance(spec, Mapping):
            raise ValueError(
                f"{self._name}: the checkpoint holds no classifier (it must come from a task that trains one)"
            )
        if not self._built:
            given = {field: self.hparams[field] for field in spec if self.hparams.get(field) is not None}
            self._build(Classifier(**{**spec, **given}))
        self._compare(spec, self.model.spec)
        if self._trainer is not None and self._trainer.state.fn != TrainerFn.FITTING:
            self._leave_out(checkpoint["state_dict"])
        self._changed = changed_settings(self, checkpoint, _SCHEDULE_FIELDS)

    def _check_synchronised(self) -> None:
        if self._trainer is not None:
            check_synchronised(self, self.model)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _built(self) -> bool:
        return "model" in self._modules

    def _build(self, model: Classifier) -> None:
        self.model = model
        self.val_accuracy = MulticlassAccuracy(model.spec["num_classes"], average="micro")
        self.test_accuracy = MulticlassAccuracy(model.spec["num_classes"], average="micro")

    def _check_range(self, field: str, value: float, rule: str, fine: bool) -> None:
        if not fine:
            raise ValueError(f"{self._name}: {field} must be {rule}, got {value}")

    def _from_data(self, field: str) -> int:
        given: int | None = self.hparams[field]
        data = getattr(self._trainer, "datamodule", None)
        found: int | None = getattr(data, field, None)
        if given is None and found is None:
            source = "there is no data module" if data is None else f"{type(data).__name__} does not say it"
            raise ValueError(f"{self._name}: {field} must be given, since {source}")
        if given is not None and found is not None and given != found:
            raise ValueError(
                f"{self._name}: {field} must be the data's, got {given}, but {type(data).__name__} has {found}"
                f" (leave {field} out to take it from the data)"
            )
        return given if given is not None else found  # type: ignore[return-value]

    def _check_finite(self, values: Tensor, images: Tensor, stage: str, batch_idx: int) -> None:
        # one wait for the device a step; which of the two it is costs only when it has happened
        if values.isfinite().all():
            return
        where = f"batch {batch_idx} of {stage} epoch {self.current_epoch}"
        if not images.isfinite().all():
            raise ValueError(f"{self._name}: images must be finite, got NaN or infinity in {where} (mend the data)")
        raise ValueError(
            f"{self._name}: the network's answers must be finite, got NaN or infinity in {where} (give an earlier"
            " checkpoint)"
        )

    def _leave_out(self, state: dict[str, Tensor]) -> None:
        """Takes out what another task keeps beside its classifier, such as weights that only go on training."""
        own = self.state_dict()
        for key in [key for key in state if key not in own and not key.startswith("model.")]:
            del state[key]

    def _compare(self, stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        for field, value in own.items():
            if not _same(stored.get(field), value):
                raise ValueError(
                    f"{self._name}: the checkpoint holds {stored.get('name')} with {field} {stored.get(field)}, got"
                    f" {own['name']} with {field} {value} (use the checkpoint's {field}, or start without it)"
                )


def _same(stored: Any, own: Any) -> bool:
    # a mean that was read from weights has been rounded to float32
    if isinstance(stored, list | tuple) and isinstance(own, list | tuple) and len(stored) == len(own):
        return all(math.isclose(one, other, rel_tol=1e-6) for one, other in zip(stored, own, strict=True))
    return bool(stored == own)


_SCHEDULE_FIELDS = ("learning_rate", "momentum", "weight_decay", "milestones", "gamma")
_DATA_FIELDS = ("num_classes", "image_size", "in_channels")
