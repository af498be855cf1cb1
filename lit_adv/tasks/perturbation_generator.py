"""Training of a network that draws adversarial perturbations in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_adv.attacks import GeneratedPerturbation, Radius
from lit_adv.attacks.attack import predictions
from lit_adv.attacks.generated import perturbed, reranked
from lit_adv.attacks.objectives import ObjectiveName, objective
from lit_adv.data.attack_files import pack
from lit_adv.models import PerturbationNetwork, freeze_, load_classifier
from lit_adv.tasks.demands import check_trainer
from lit_adv.tasks.finite import FiniteTraining

Batch = tuple[Tensor, Tensor]


class PerturbationGenerator(pl.LightningModule):
    """Trains G so that x + eps G(x) fools a victim, Baluja & Fischer 2018 (arXiv:1703.09387), a P-ATN bounded by eps.

    Labels are not used: the class to leave is the victim's own prediction. Logs `train/loss` and, as `FitAttack` does,
    `val/fooling` and `test/fooling`: the share of the images whose predicted class changes or, where there is a target,
    that are taken for it. Its checkpoints are attacks for any config: ``class_path: lit_adv.data.load_attack``,
    ``init_args: {path: runs/.../checkpoints/best.ckpt}``.

    Args:
        victim: The network attacked: a module, or the path of a checkpoint made by `VictimClassifier`.
        eps: Linf radius in pixel units of [0, 1].
        target: The class that all images are to be taken for (one G a target, as in the paper); None for none.
        loss: ``objective`` minimises `objective`; ``rerank``, for a target, the paper's beta L2(x', x) + L2(y', r(y)),
            squares summed over pixels and over classes, with y the victim's probabilities and r = r_alpha.
        objective: See `lit_adv.attacks.objectives`; ``ce`` is the victim's loss, which learns more slowly here.
        alpha: Of r_alpha, above 1; 1.5 in the paper.
        beta: Weight of the distance between images, at least 0; 0.010 to 0.001 in the paper for MNIST.
        width: Of the `PerturbationNetwork`.
        blocks: Of the `PerturbationNetwork`.
        in_channels: C; None takes the data module's.
        learning_rate: Adam's.

    Attributes:
        generator: G, once `configure_model` has run.

    Raises:
        ValueError: A field is out of range, or two do not go together.
    """

    monitor = "val/fooling"
    monitor_mode = "max"
    victim: nn.Module | str

    def __init__(
        self,
        victim: nn.Module | str,
        eps: Radius = 8 / 255,
        target: int | None = None,
        loss: Literal["objective", "rerank"] = "objective",
        objective: ObjectiveName = "margin",
        alpha: float = 1.5,
        beta: float = 0.01,
        width: int = 32,
        blocks: int = 4,
        in_channels: int | None = None,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        if loss not in ("objective", "rerank"):
            raise ValueError(f"PerturbationGenerator: loss must be objective or rerank, got {loss!r}")
        if loss == "rerank" and target is None:
            raise ValueError("PerturbationGenerator: target must be given for loss rerank, got None (a class to lead)")
        if not 1 < alpha < math.inf:
            raise ValueError(f"PerturbationGenerator: alpha must be above 1, got {alpha:g} (at 1 the target only ties)")
        if not 0 <= beta < math.inf:
            raise ValueError(f"PerturbationGenerator: beta must be at least 0, got {beta:g}")
        if target is not None and target < 0:
            raise ValueError(f"PerturbationGenerator: target must be a class, got {target}")
        # the attack and the network know the rest; refused now rather than after the data are read
        probe = PerturbationNetwork(in_channels or 1, width, blocks)
        GeneratedPerturbation(generator=probe, eps=eps, objective=objective, learning_rate=learning_rate)
        self.save_hyperparameters(ignore=["victim"])
        self.target = target
        self.generator: PerturbationNetwork
        self.fooling = MeanMetric()
        # beside the submodules: no checkpoint needs to hold it
        self.__dict__["victim"] = victim

    def forward(self, images: Tensor) -> Tensor:
        """The adversarial images `(B, C, H, W)` of images `(B, C, H, W)` in `[0, 1]`."""
        return perturbed(self.generator, images, float(self.hparams["eps"]))

    @property
    def attack(self) -> GeneratedPerturbation:
        """The attack that holds the generator."""
        fields = ("eps", "objective", "learning_rate")
        return GeneratedPerturbation(generator=self.generator, **{name: self.hparams[name] for name in fields})

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """Stops training that has lost its numbers; refuses a trainer that the task cannot work with.

        Raises:
            ValueError: See `check_trainer`.
        """
        check_trainer(self)
        return [FiniteTraining()]

    def configure_model(self) -> None:
        """Builds the generator.

        Raises:
            ValueError: Nobody says how many channels the images have.
        """
        if "generator" in self._modules:
            return
        channels = self.hparams["in_channels"]
        if channels is None:
            channels = getattr(getattr(self._trainer, "datamodule", None), "in_channels", None)
        if channels is None and self._trainer is None:
            return  # a checkpoint is being read outside a trainer: on_load_checkpoint knows
        if channels is None:
            raise ValueError("PerturbationGenerator: in_channels must be given, since the data module does not say it")
        self.generator = PerturbationNetwork(channels, self.hparams["width"], self.hparams["blocks"])

    def setup(self, stage: str) -> None:
        """Loads the victim."""
        found = load_classifier(self.victim) if isinstance(self.victim, str) else self.victim
        self.__dict__["victim"] = freeze_(found)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, network = batch[0], self._network()
        with torch.no_grad():
            clean = network(images)
        labels = clean.argmax(1)
        goal = labels if self.target is None else torch.full_like(labels, self.target)
        if self.target is not None and self.target >= clean.shape[1]:
            raise ValueError(
                f"PerturbationGenerator: target must be a class of the victim, 0 to {clean.shape[1] - 1}, got"
                f" {self.target}"
            )
        adversarial = self(images)
        logits = network(adversarial)
        if self.hparams["loss"] == "rerank":
            wanted = reranked(clean.softmax(1), goal, self.hparams["alpha"])
            distance = (adversarial - images).square().sum((1, 2, 3))
            losses = self.hparams["beta"] * distance + (logits.softmax(1) - wanted).square().sum(1)
        else:
            losses = objective(self.hparams["objective"])(logits, goal, self.target is not None)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the images fooled."""
        self._count(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the images fooled."""
        self._count(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The adversarial images `(B, C, H, W)`."""
        images: Tensor = self._run(batch[0]).images
        return images

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.generator.parameters(), lr=self.hparams["learning_rate"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the attack, which `lit_adv.data.load_attack` reads."""
        checkpoint["attack"] = pack(self.attack)
        checkpoint["generator"] = dict(self.generator.spec)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Builds the generator that the checkpoint holds.

        Raises:
            ValueError: The checkpoint holds none, or another one.
        """
        spec = checkpoint.get("generator")
        if not isinstance(spec, dict):
            raise ValueError("PerturbationGenerator: the checkpoint holds no generator (it must come from this task)")
        if "generator" not in self._modules:
            self.generator = PerturbationNetwork(**spec)
        if self.generator.spec != spec:
            raise ValueError(
                f"PerturbationGenerator: the checkpoint holds a generator of {spec}, got {self.generator.spec} (use the"
                " checkpoint's values, or start without it)"
            )

    def _count(self, batch: Batch, stage: str) -> None:
        images = batch[0]
        self.fooling.update(self._run(images).success.float())
        self.log(f"{stage}/fooling", self.fooling, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))

    def _run(self, images: Tensor) -> Any:
        network = self._network()
        labels = predictions(network, images)
        targets = None if self.target is None else torch.full_like(labels, self.target)
        return self.attack.run(network, images, labels, targets=targets)

    def _network(self) -> nn.Module:
        assert isinstance(self.victim, nn.Module)
        return self.victim.to(self.device)
