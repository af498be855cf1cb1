"""Fitting of the attacks that are fitted to a network once, such as a universal perturbation."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_adv.attacks import Attack, Region
from lit_adv.attacks.attack import predictions
from lit_adv.data.attack_files import pack, save_attack, unpack
from lit_adv.models import freeze_, load_classifier
from lit_adv.tasks.demands import check_trainer

Batch = tuple[Tensor, Tensor]


class FitAttack(pl.LightningModule):
    """Fits an attack to a victim on the training images, and writes it to `attack.safetensors` in the run's folder.

    An epoch collects the images; after its last batch the attack is fitted, in passes of its own. Logs `val/fooling`
    and `test/fooling`: the share of the images whose predicted class the fitted attack changes, or, where there is a
    target, that are taken for it. Other configs use the file as an attack: `class_path: lit_adv.data.load_attack`,
    `init_args: {path: FILE}`.

    Args:
        attack: An attack with a method `fit(model, batches)`: UniversalPerturbation, AdversarialPatch.
        victim: The network attacked: a module, or the path of a checkpoint made by `VictimClassifier`.
        target: The class that all images are to be taken for; None to leave each image's own.
        region: The only pixels that may change.
        seed: Of the fit and of the evaluation.

    Attributes:
        attack: The attack, fitted once `fit` is through or a checkpoint has been read.

    Raises:
        ValueError: The attack is not one that is fitted; later, the trainer has more than one epoch or process.
    """

    monitor = "val/fooling"
    monitor_mode = "max"
    victim: nn.Module | str

    def __init__(
        self,
        attack: Attack,
        victim: nn.Module | str,
        target: int | None = None,
        region: Region | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        fit = getattr(attack, "fit", None)
        if fit is None or "batches" not in inspect.signature(fit).parameters:
            raise ValueError(
                f"FitAttack: attack must be one that is fitted to batches, such as UniversalPerturbation or"
                f" AdversarialPatch, got {type(attack).__name__}"
            )
        self.attack = attack
        self.target = target
        self.region = region
        self.seed = seed
        self.fooling = MeanMetric()
        # Lightning counts the optimizer's steps, and saves no checkpoint where none was taken
        self.steps = nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self._batches: list[Batch] = []
        # beside the submodules: no checkpoint needs to hold it
        self.__dict__["victim"] = victim

    def configure_callbacks(self) -> Sequence[pl.Callback]:
        """None; refuses a trainer that the task cannot work with, see `check_trainer`."""
        check_trainer(self)
        return []

    def setup(self, stage: str) -> None:
        """Loads the victim, and refuses a trainer that would fit in part or twice."""
        if stage == "fit" and self.trainer.world_size > 1:
            raise ValueError(
                f"FitAttack: the attack is fitted in one process, got {self.trainer.world_size} (--trainer.devices=1)"
            )
        if stage == "fit" and self.trainer.max_epochs != 1:
            raise ValueError(
                f"FitAttack: trainer.max_epochs must be 1, got {self.trainer.max_epochs} (passes over the images are"
                " the attack's own: model.attack.passes)"
            )
        found = load_classifier(self.victim) if isinstance(self.victim, str) else self.victim
        self.__dict__["victim"] = freeze_(found)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Keeps the batch; fits the attack to all of them after the last one."""
        images, labels = batch
        self._batches.append((images.cpu(), labels.cpu()))
        if self.trainer.is_last_batch:
            batches, self._batches = self._batches, []
            self.attack = self.attack.fit(  # type: ignore[attr-defined]
                self._network(), batches, target=self.target, region=self.region, seed=self.seed
            )
            self._write()
        optimizer: Any = self.optimizers()
        optimizer.step()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the images fooled."""
        if not self.trainer.sanity_checking:  # nothing is fitted yet
            self._count(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the images fooled."""
        self._count(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The adversarial images `(B, C, H, W)`."""
        return self._run(batch[0]).images

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One that changes nothing."""
        return torch.optim.SGD([self.steps], lr=0.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the attack."""
        checkpoint["attack"] = pack(self.attack)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the fitted attack.

        Raises:
            ValueError: The checkpoint holds none, or one of another class.
        """
        if "attack" not in checkpoint:
            raise ValueError("FitAttack: the checkpoint holds no attack (it must come from FitAttack)")
        attack = unpack(*checkpoint["attack"])
        if type(attack) is not type(self.attack):
            raise ValueError(
                f"FitAttack: the checkpoint holds {type(attack).__name__}, got {type(self.attack).__name__} as attack"
            )
        self.attack = attack

    def _write(self) -> None:
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            path = Path(self.trainer.default_root_dir) / "attack.safetensors"
            save_attack(self.attack, path)
            print(f"fitted attack: {path}", flush=True)

    def _count(self, batch: Batch, stage: str) -> None:
        images = batch[0]
        self.fooling.update(self._run(images).success.float())
        self.log(f"{stage}/fooling", self.fooling, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(images))

    def _run(self, images: Tensor) -> Any:
        network = self._network()
        labels = predictions(network, images)
        targets = None if self.target is None else torch.full_like(labels, self.target)
        return self.attack.run(network, images, labels, targets=targets, region=self.region, seed=self.seed)

    def _network(self) -> nn.Module:
        assert isinstance(self.victim, nn.Module)
        return self.victim.to(self.device)
