"""What the saliency callbacks share: the victims, their attacks' images, and what is usual for their filters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lit_adv.attacks import Attack
from lit_adv.attacks.attack import predictions
from lit_adv.data.batches import EpochBatches
from lit_adv.data.sampling import rank_and_world
from lit_adv.evaluation import check_attacks, pair
from lit_adv.explain import parameter_saliency, saliency_statistics
from lit_adv.metrics import SaliencyStatistics
from lit_adv.metrics.saliency import check_floor
from lit_adv.models import fingerprint

from .results_table import setting_name


class Attacked(NamedTuple):
    """Images of a test batch that one attack has made for one victim.

    Attributes:
        attack: Its key; ``clean`` for clean images.
        victim: Name of the victim; empty for the task itself.
        model: The victim.
        clean: ``(B, C, H, W)``.
        images: ``(B, C, H, W)``, adversarial, or the clean ones once more.
        labels: ``(B,)``, the true classes.
        before: ``(B,)``, classes that the victim gives the clean images.
        after: ``(B,)``, and the images.
        index: ``(B,)``, positions in the test set, or in the batch.
    """

    attack: str
    victim: str
    model: nn.Module
    clean: Tensor
    images: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    index: Tensor  # type: ignore[assignment]


class SaliencyCallback(pl.Callback):
    """Base of the callbacks on saliency: statistics from the validation set, and the attacked images of the test set.

    With an AdversarialDataModule, every attack of it counts on every victim; with any other data, whose batches are
    (images, labels), `attacks` are run on the task itself, whose ``forward`` must give logits. Statistics of several
    of these callbacks in a run are computed once, and kept in the run folder under
    ``saliency/<victim>.safetensors``.

    Args:
        attacks: By any names, where there is no AdversarialDataModule; None takes those of the data module.
        statistics_dir: The folder ``saliency`` of an earlier run, whose statistics are used in place of the validation
            set where they are of these victims; a file of other weights is refused.
        chunk_size: Most images whose saliency is computed at once; None takes whole batches.
        seed: Of `attacks`.
        floor: Least standard deviation of a filter, see `SaliencyStatistics.deviations`.

    Raises:
        ValueError: An argument is out of range; in the test, data and `attacks` that do not fit, or no validation set.
    """

    def __init__(
        self,
        attacks: dict[str, Attack] | None = None,
        statistics_dir: str | None = None,
        chunk_size: int | None = None,
        seed: int = 0,
        floor: float = 0.0,
    ) -> None:
        check_floor(self._name, floor)
        if attacks is not None:
            check_attacks(self._name, attacks, None)
            if "clean" in attacks:
                raise ValueError(f"{self._name}: attacks must have other names than clean, which the images have")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"{self._name}: chunk_size must be at least 1, got {chunk_size}")
        self.attacks = attacks
        self.statistics_dir = statistics_dir
        self.chunk_size = chunk_size
        self.seed = seed
        self.floor = floor
        self.statistics: dict[str, SaliencyStatistics] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.statistics = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        crafted = hasattr(data, "attack_classes")
        if crafted == (self.attacks is not None):
            remedy = "leave attacks out to take those of the data module" if crafted else "name them under attacks"
            raise ValueError(
                f"{self._name}: attacks must come either from an AdversarialDataModule or as an argument, got "
                f"{'both' if crafted else 'neither'} ({remedy})"
            )
        for name in data.victim_names if crafted else ("",):
            model = data.victim(name, pl_module.device) if crafted else pl_module
            self.statistics[name] = self._statistics(trainer, pl_module, name, model)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _several(self) -> bool:
        return len(self.statistics) > 1

    def _keys(self, trainer: pl.Trainer) -> list[str]:
        """The attacks, clean images first."""
        if self.attacks is not None:
            return ["clean", *self.attacks]
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return ["clean", *(setting_name(name, key) for name in data.attack_classes[1:] for key in data.settings[name])]

    def _attacked(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, examples: Sequence[int] | None = None
    ) -> Iterator[Attacked]:
        """The images of a batch by attack and victim; where there are examples, those at these positions alone."""
        if self.attacks is None:
            yield from self._crafted(trainer, pl_module, batch, examples)
            return
        images, labels = pair(f"{self._name} with {type(pl_module).__name__}", batch)
        index = torch.arange(len(images), device=images.device)
        if examples is not None:
            index = index.new_tensor([place for place in examples if place < len(images)])
            images, labels = images[index], labels[index]
        before = predictions(pl_module, images)
        yield Attacked("clean", "", pl_module, images, images, labels, before, before, index)
        for key, attack in self.attacks.items():
            made = attack(pl_module, images, before, seed=self.seed)
            yield Attacked(key, "", pl_module, images, made, labels, before, predictions(pl_module, made), index)

    def _crafted(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, examples: Sequence[int] | None
    ) -> Iterator[Attacked]:
        if not hasattr(batch, "adversarial"):
            raise ValueError(f"{self._name}: batches must be of the AdversarialDataModule, got {type(batch).__name__}")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        variants = torch.stack([batch.attack, batch.setting, batch.victim], 1)
        if examples is not None:
            shown = torch.isin(batch.index, batch.index.new_tensor(list(examples)))
            variants, batch = variants[shown], type(batch)(*(part[shown] for part in batch))
        for attack, setting, victim in sorted({tuple(row) for row in variants.tolist()}):
            rows = (variants == variants.new_tensor([attack, setting, victim])).all(1)
            kind = data.attack_classes[attack]
            # clean images are those of all victims
            for name in [data.victim_names[victim]] if attack else data.victim_names:
                key = setting_name(kind, data.settings[kind][setting]) if attack else "clean"
                model = data.victim(name, pl_module.device)
                clean, made = batch.clean[rows], batch.adversarial[rows]
                before = predictions(model, clean)
                after = predictions(model, made) if attack else before
                yield Attacked(key, name, model, clean, made, batch.label[rows], before, after, batch.index[rows])

    def _saliency(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return parameter_saliency(model, images, labels, chunk_size=self.chunk_size)

    def _statistics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str, model: nn.Module
    ) -> SaliencyStatistics:
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if other is not self and isinstance(other, SaliencyCallback) and name in other.statistics:
                return other.statistics[name]
        file = f"{name or 'model'}.safetensors"
        if self.statistics_dir is not None and (Path(self.statistics_dir) / file).is_file():
            return SaliencyStatistics.load(Path(self.statistics_dir) / file, fingerprint(model)).to(pl_module.device)
        found = saliency_statistics(model).to(pl_module.device)
        # a process may get no image
        found.update(torch.zeros(0, sum(found.layers.values()), device=pl_module.device))
        for images, labels in self._validation(trainer):
            found.update(self._saliency(model, images.to(pl_module.device), labels.to(pl_module.device)))
        # on all processes together, and kept; refuses fewer than two images
        found.compute()
        folder = Path(trainer.default_root_dir) / "saliency"
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder / file)
        return found

    def _validation(self, trainer: pl.Trainer) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's share of the clean validation images and their labels."""
        data: Any = getattr(trainer, "datamodule", None)
        if data is not None and hasattr(data, "clean_batches"):
            return data.clean_batches("val")
        if data is None:
            raise ValueError(
                f"{self._name}: the data must be a data module with a validation set, which the statistics are of, got "
                "loaders"
            )
        data.setup("validate")
        loaders = data.val_dataloader()
        return self._shares(loaders if isinstance(loaders, Sequence) else [loaders])

    def _shares(self, loaders: Sequence[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        rank, ranks = rank_and_world()
        for loader in loaders:
            # our own loaders deal the images out by themselves
            dealt = isinstance(getattr(loader, "sampler", None), EpochBatches)
            for number, batch in enumerate(loader):
                if dealt or number % ranks == rank:
                    yield pair(self._name, batch)
