"""A task and a data module as small as the callbacks need them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import rich
import torch
from lit_adv.callbacks import RunProgress
from torch import Tensor
from torch.utils.data import DataLoader

CLASSES = ["clean", "pgd", "deepfool"]


class Batch(NamedTuple):
    clean: Tensor
    adversarial: Tensor
    label: Tensor
    attack: Tensor
    setting: Tensor
    victim: Tensor
    index: Tensor


class Data(pl.LightningDataModule):
    """Four images of 8 x 8 in all variants, image by image: clean, pgd/4, pgd/8, deepfool, on two victims."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.attack_classes = CLASSES
        self.settings = {"clean": [], "pgd": ["4", "8"], "deepfool": ["deepfool"]}
        self.victim_names = ["small_cnn", "resnet18"]
        generator = torch.Generator().manual_seed(0)
        clean = torch.rand(4, channels, 8, 8, generator=generator)
        variants = [(0, 0, -1)] + [(a, s, v) for a, s in ((1, 0), (1, 1), (2, 0)) for v in range(2)]
        rows = []
        for index in range(4):
            for attack, setting, victim in variants:
                noise = 0.05 * attack * torch.randn(channels, 8, 8, generator=generator)
                adversarial = (clean[index] + noise).clamp(0, 1)
                numbers = (index % 2, attack, setting, victim, index)
                rows.append((clean[index], adversarial, *(torch.tensor(number) for number in numbers)))
        self.rows = rows

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=5, collate_fn=_collate)

    train_dataloader = val_dataloader = test_dataloader = loader


class Task(pl.LightningModule):
    """Returns what REDRL returns; recognises everything but images 1 and 3 under pgd."""

    def __init__(self, reconstructs: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.reconstructs = reconstructs
        self.results: dict[str, Any] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.weight**2
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(batch.label))
        return loss

    def evaluation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | None]:
        wrong = (batch.attack == 1) & (batch.index % 2 == 1)
        # 0.9 of the perturbation taken away, as if the reconstruction were nearly right
        reconstructed = batch.adversarial - 0.9 * (batch.adversarial - batch.clean) if self.reconstructs else None
        residual = None if reconstructed is None else batch.adversarial - reconstructed.clamp(0, 1)
        return {
            "reconstructed": reconstructed,
            "residual": residual,
            "prediction": torch.where(wrong, 2, batch.attack),
        }

    validation_step = test_step = predict_step = evaluation_step

    def on_validation_epoch_end(self) -> None:
        self.log("val/recognition", 0.75, prog_bar=True)

    def on_test_epoch_end(self) -> None:
        self.log("test/recognition", 5 / 6)
        self.results = results(self.reconstructs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def results(reconstructs: bool = True) -> dict[str, Any]:
    """Results of a test as REDRL leaves them; one class was never seen."""
    report = [
        {"attack": attack, "setting": setting, "victim": victim, "images": 4, **numbers}
        for attack, setting, numbers in (
            ("pgd", "4", {"success_before": 4, "success_after": 3, "unchanged": 0}),
            ("pgd", "8", {"success_before": 4, "success_after": 4, "unchanged": 0}),
            ("deepfool", "deepfool", {"success_before": 4, "success_after": 1, "unchanged": 2}),
        )
        for victim in ("small_cnn", "resnet18")
    ]
    cells = {
        "clean": {"before": 1.0, "after": 0.75, "images": 4},
        "pgd": {"before": 0.125, "after": 2 / 3, "images": 8},
        "patch": {"before": float("nan"), "after": float("nan"), "images": 0},
    }
    return {
        "stage": "test",
        "inputs": "residual" if reconstructs else "image",
        "classes": [*CLASSES, "patch"],
        "victims": ["small_cnn", "resnet18"],
        "recognition": {
            "micro": 20 / 28,
            "macro": 5 / 6,
            "weighted": 0.6,
            "per_class": {"clean": 1.0, "pgd": 0.5, "deepfool": 1.0, "patch": float("nan")},
            "counts": {"clean": 4, "pgd": 16, "deepfool": 8, "patch": 0},
            "confusion": [[4, 0, 0, 0], [0, 8, 8, 0], [0, 0, 8, 0], [0, 0, 0, 0]],
        },
        "reconstruction": {"small_cnn": cells, "resnet18": cells} if reconstructs else {},
        "crafting": report,
    }


def _collate(rows: list[tuple[Tensor, ...]]) -> Batch:
    return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def task() -> Task:
    return Task()


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """Return a function that makes a quiet CPU trainer whose run folder is tmp_path."""

    def make(*callbacks: pl.Callback, **kwargs: Any) -> pl.Trainer:
        kwargs = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, **kwargs}
        bar = any(isinstance(callback, RunProgress) for callback in callbacks)
        return pl.Trainer(
            accelerator="cpu",
            max_epochs=kwargs.pop("max_epochs", 2),
            default_root_dir=kwargs.pop("default_root_dir", tmp_path),
            callbacks=list(callbacks),
            enable_progress_bar=bar,
            num_sanity_val_steps=kwargs.pop("num_sanity_val_steps", 0),
            **kwargs,
        )

    return make


@pytest.fixture(autouse=True)
def _console() -> Iterator[None]:
    """Give back rich's global console, which progress bars reconfigure."""
    yield
    rich.reconfigure()
