"""What the reconstruction does to each attack, as a figure."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.plots import Example, example_grid

from .figures import log_figure
from .results_table import setting_name


class ReconstructionGrid(pl.Callback):
    """Shows the first images of each attack class: clean, adversarial, reconstructed, and what lies between.

    The residual `I_adv - G(I_adv)` is shown as `0.5 + scale * residual`, so that grey means unchanged. A task that
    reconstructs nothing (the baselines of Souri et al. 2021, REDRL, arXiv:2106.11280, Table 3) shows the true
    perturbation `I_adv - I_clean` in its place. Captions name what made the image and what it was recognised as. The
    figure is `figures/reconstruction.png` in the run folder after a test, and `figures/reconstruction_epoch_NNN.png`
    after a validation epoch of a fit. Only the main process collects, from its own batches.

    Args:
        images: Images per attack class, >= 1; each class shows different images.
        scale: Factor on the residual, > 0.
        every_n_epochs: Validation epochs between two figures; 0 draws at the test alone.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, images: int = 2, scale: float = 8.0, every_n_epochs: int = 0) -> None:
        for name, value, good in (
            ("images", images, images >= 1),
            ("scale", scale, scale > 0),
            ("every_n_epochs", every_n_epochs, every_n_epochs >= 0),
        ):
            if not good:
                least = {"images": ">= 1", "scale": "> 0", "every_n_epochs": ">= 0"}[name]
                raise ValueError(
                    f"ReconstructionGrid: {name} must be {least}, got {value} (leave it out for the default)"
                )
        self.images = images
        self.scale = scale
        self.every_n_epochs = every_n_epochs
        self._rows: dict[int, dict[int, dict[str, Any]]] = {}

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows.clear()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rows.clear()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero:
            self._collect(outputs, batch)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero and self._draws(trainer):
            self._collect(outputs, batch)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._rows:
            self._draw(trainer, pl_module, "reconstruction", "test images")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._rows:
            epoch = trainer.current_epoch
            self._draw(trainer, pl_module, f"reconstruction_epoch_{epoch:03d}", f"validation images, epoch {epoch}")

    def _draws(self, trainer: pl.Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.every_n_epochs:
            return False
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _collect(self, outputs: Any, batch: Any) -> None:
        """Keep the rows whose class is short of images and whose image that class does not show yet."""
        _check(outputs, batch)
        indices = batch.index.tolist()
        for row, attack in enumerate(batch.attack.tolist()):
            kept = self._rows.setdefault(attack, {})
            if len(kept) < self.images and indices[row] not in kept:
                kept[indices[row]] = {
                    "clean": _picture(batch.clean[row]),
                    "adversarial": _picture(batch.adversarial[row]),
                    "reconstructed": None
                    if outputs["reconstructed"] is None
                    else _picture(outputs["reconstructed"][row]),
                    "residual": None if outputs["residual"] is None else _picture(outputs["residual"][row]),
                    "prediction": int(outputs["prediction"][row]),
                    "setting": int(batch.setting[row]),
                    "victim": int(batch.victim[row]),
                }

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, title: str) -> None:
        names = _Names(trainer, pl_module)
        rows, reconstructs = {}, True
        for attack in sorted(self._rows):
            examples = []
            for row in self._rows[attack].values():
                reconstructs = row["reconstructed"] is not None
                difference = row["residual"] if reconstructs else row["adversarial"] - row["clean"]
                shown = [row["clean"], row["adversarial"], row["reconstructed"], 0.5 + self.scale * difference]
                panels = tuple(picture.clamp(0, 1).numpy() for picture in shown if picture is not None)
                right = row["prediction"] == attack
                caption = f"{names.origin(attack, row['setting'], row['victim'])}  →  {names.attack(row['prediction'])}"
                examples.append(Example(panels, f"{caption}  {'✓' if right else '✗'}", right))
            rows[names.attack(attack)] = examples
        columns = ["clean", "adversarial"]
        columns += (
            ["reconstructed", f"residual × {self.scale:g}"] if reconstructs else [f"perturbation × {self.scale:g}"]
        )
        log_figure(trainer, name, example_grid(rows, columns, f"{type(pl_module).__name__}: {title}"))
        self._rows.clear()


class _Names:
    """Names of the indices in a batch, from the task's results and the data module."""

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        results = getattr(pl_module, "results", None) or {}
        self.classes = getattr(data, "attack_classes", None) or results.get("classes", [])
        self.settings = getattr(data, "settings", {})
        self.victims = getattr(data, "victim_names", None) or results.get("victims", [])

    def attack(self, attack: int) -> str:
        return self.classes[attack] if attack < len(self.classes) else f"attack {attack}"

    def origin(self, attack: int, setting: int, victim: int) -> str:
        """Name the attack with its setting and the victim it was made against; a clean image has neither."""
        name = self.attack(attack)
        if victim < 0:
            return name
        settings = self.settings.get(name, [])
        if setting < len(settings):
            name = setting_name(name, settings[setting])
        return f"{name} on {self.victims[victim]}" if victim < len(self.victims) else name


def _check(outputs: Any, batch: Any) -> None:
    if not hasattr(batch, "adversarial") or not hasattr(batch, "attack"):
        raise TypeError(
            f"ReconstructionGrid: batch must be an AdversarialBatch, got {type(batch).__name__} "
            "(use this callback with an AdversarialDataModule)"
        )
    missing = [key for key in ("reconstructed", "residual", "prediction") if key not in (outputs or {})]
    if missing:
        raise TypeError(
            f"ReconstructionGrid: the step must return a dict with {', '.join(missing)}, got {type(outputs).__name__} "
            "(use this callback with REDRL)"
        )


def _picture(image: Tensor) -> Tensor:
    # a copy, so that the batch can be freed
    return image.detach().to("cpu", torch.float32, copy=True)
