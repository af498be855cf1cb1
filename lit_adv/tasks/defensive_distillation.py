"""Defensive distillation: a teacher at a high temperature, and a student of its soft labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_adv.models import Classifier, freeze_, load_classifier
from lit_adv.models.temperature import check_temperature
from lit_adv.models.weights import read_file
from lit_adv.tasks.victim_classifier import VictimClassifier


class DefensiveDistillation(VictimClassifier):
    """Trains a classifier at temperature T, on hard labels (the teacher) or on a teacher's soft labels (the student).

    Papernot et al. 2016, arXiv:1511.04508, section IV-A: the teacher minimises the cross-entropy of softmax(Z / T) on
    the labels; the student, of the same architecture, that on softmax(Z_teacher / T), computed in eval mode for the
    very images it is shown, augmented or not. Both are tested, and attacked, at T = 1: the network that is kept has no
    temperature. Two runs of the same config, the first with ``--model.teacher=null``.

    The network is no more robust for it (Carlini & Wagner 2017, section VIII): its logits are about T times larger, the
    softmax saturates in float32 and gradients of the cross-entropy vanish, so that FGSM fails. Judge it by attacks on
    the logits (CW, an objective ``margin``) or at temperature T (`lit_adv.attacks.AtTemperature`).

    The gradient in the logits is T times smaller than without a temperature, and there is no factor T^2 in the paper:
    raise the learning rate, up to T times, and lower the weight decay as much, or set ``t_squared``.

    Args:
        temperature: T of both losses; 40 to 50 in the lecture, 20 in Papernot et al. for MNIST and CIFAR-10.
        teacher: The checkpoint of a teacher trained by this task at the same T, or a file of `save_classifier`. None
            trains a teacher.
        t_squared: Multiply the loss by T^2 (Hinton et al. 2015, arXiv:1503.02531, section 2), off as in the paper.
        settings: As for `VictimClassifier`; ``label_smoothing`` belongs to hard labels and so to the teacher.

    Attributes:
        teacher: The frozen teacher, once the fit has begun; in no checkpoint and no group of parameters.

    Raises:
        ValueError: A field is out of range; later, the teacher is another architecture or of another temperature.
        FileNotFoundError: There is no checkpoint of the teacher; says the command that makes it.
    """

    def __init__(
        self,
        *,
        temperature: float = 40.0,
        teacher: str | None = None,
        t_squared: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        check_temperature(self._name, temperature)
        if teacher is not None and self.hparams["label_smoothing"]:
            raise ValueError(
                f"{self._name}: label_smoothing must be 0 with a teacher, whose labels are soft already, got"
                f" {self.hparams['label_smoothing']}"
            )
        self.temperature = float(temperature)
        # beside the submodules: neither the optimiser nor a checkpoint needs it
        self.__dict__["teacher"] = None

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """-sum_k p_k log softmax_k(Z / T), averaged; p are the labels, or softmax(Z_teacher / T)."""
        if self.hparams["teacher"] is None:
            loss = F.cross_entropy(
                self(images) / self.temperature, labels, label_smoothing=self.hparams["label_smoothing"]
            )
        else:
            logits = self(images) / self.temperature
            loss = F.cross_entropy(logits, self.soft_labels(images).to(logits.dtype))
        return loss * self.temperature**2 if self.hparams["t_squared"] else loss

    def soft_labels(self, images: Tensor) -> Tensor:
        """softmax(Z_teacher / T) ``(B, K)``, without a graph, the teacher in eval mode."""
        teacher = self.__dict__["teacher"]
        if teacher is None:
            raise RuntimeError(f"{self._name}: soft_labels needs the teacher, which is loaded when the fit begins")
        kept = next((parameter.dtype for parameter in teacher.parameters()), images.dtype)
        # in the teacher's own precision under any of the trainer's: a distilled network's logits are some hundreds, of
        # which bfloat16 keeps two digits
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits: Tensor = teacher.to(images.device)(images.to(kept))
            return (logits / self.temperature).softmax(1)

    def setup(self, stage: str) -> None:
        """Loads the teacher; nothing but a fit needs it."""
        path = self.hparams["teacher"]
        if stage == "fit" and path is not None and self.__dict__["teacher"] is None:
            self.__dict__["teacher"] = freeze_(self._read_teacher(path))

    def configure_model(self) -> None:
        """Builds the network, and refuses a teacher of another architecture.

        Raises:
            ValueError: As for `VictimClassifier`, or the teacher's description is another.
        """
        super().configure_model()
        teacher = self.__dict__["teacher"]
        if teacher is not None and self._built:
            for field, value in self.model.spec.items():
                if teacher.spec[field] != value:
                    raise ValueError(
                        f"{self._name}: the student must be of the teacher's architecture, got {field} {value} and a"
                        f" teacher with {teacher.spec[field]} (give the same {field}, or another teacher)"
                    )

    def _read_teacher(self, path: str) -> Classifier:
        if not Path(path).is_file():
            folder = Path(path).parent.parent
            raise FileNotFoundError(
                f"{self._name}: there is no teacher '{path}' (train it first: lightning fit with the same config and"
                f" --model.teacher=null --run_dir={folder})"
            )
        found = load_classifier(path)
        if not isinstance(found, Classifier):
            raise ValueError(f"{self._name}: teacher must be a Classifier, got {type(found).__name__} in '{path}'")
        if Path(path).suffix != ".safetensors":
            # a checkpoint of another task was trained without a temperature
            stored = read_file(path, self._name, "check the path").get("hyper_parameters", {}).get("temperature", 1.0)
            if stored != self.hparams["temperature"]:
                raise ValueError(
                    f"{self._name}: the teacher must be trained at the student's temperature, got"
                    f" {self.hparams['temperature']:g} and a teacher of {stored:g} (train it with"
                    f" --model.teacher=null --model.temperature={self.hparams['temperature']:g})"
                )
        return found
