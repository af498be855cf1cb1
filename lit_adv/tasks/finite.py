"""Training that stops where a loss or a weight is no number any more, before anything is saved of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lit_adv.data.batches import EpochBatches


class FiniteTraining(pl.Callback):
    """Stops a run whose loss is NaN or infinite, and lets no checkpoint hold weights that are.

    Every task that trains brings it along (`configure_callbacks`). What is found is looked at a step late, when the
    device has long computed it, and always before a checkpoint is written: the last one is good.

    Raises:
        ValueError: A loss is not finite; the message has the epoch, the batch, its images by their positions in the
            training set, and which of them hold NaN. Or a weight is not, after a step of the optimiser.
    """

    def __init__(self) -> None:
        self._batch: tuple[int, int] | None = None
        self._images: list[Tensor] = []
        self._index: Tensor | None = None
        self._loss: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Looks at the batch before, and marks this one's images that are not finite."""
        self._look(trainer, pl_module)
        self._batch = (trainer.current_epoch, index)
        self._images = [_spoilt(part) for part in _parts(batch) if part.ndim == 4 and part.is_floating_point()]
        found = getattr(batch, "index", None)
        # of a tuple, `index` is a method
        self._index = found if isinstance(found, Tensor) else None

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Notes whether the loss is finite."""
        finite = loss.detach().isfinite().all()
        self._loss = finite if self._loss is None else self._loss & finite

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last batch before the validation."""
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last batch."""
        self._look(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses to let it be written with what is not finite."""
        if not trainer.training and not trainer.validating:
            return
        self._look(trainer, pl_module)
        wrong = _not_finite(pl_module, checkpoint.get("state_dict", {}))
        if wrong:
            more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
            batch = f" (batch {self._batch[1]})" if self._batch else ""
            raise ValueError(
                f"{type(pl_module).__name__}: the weights must be finite, got NaN or infinity in {wrong[0]}{more} after"
                f" the last step of epoch {trainer.current_epoch}{batch}; {_advice(trainer, pl_module)}"
            )

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        fine, self._loss = self._loss, None
        if fine is None or bool(fine):
            return
        assert self._batch is not None
        epoch, index = self._batch
        keys = _keys(trainer, epoch, index) if self._index is None else self._index.tolist()
        spoilt = [place for mask in self._images for place in mask.nonzero()[:, 0].tolist()]
        spoilt = sorted(set(spoilt))
        where = f"in batch {index} of epoch {epoch}"
        if spoilt:
            of = (
                f"images {_short([keys[place] for place in spoilt])} of the training set"
                if keys
                else (f"images {_short(spoilt)} of the batch")
            )
            raise ValueError(
                f"{type(module).__name__}: images must be finite, got NaN or infinity in {of}, {where} (mend the data);"
                f" {_kept(trainer)}"
            )
        of = f" (images {_short(keys)} of the training set)" if keys else ""
        raise ValueError(
            f"{type(module).__name__}: the loss must be finite, got NaN or infinity {where}{of}, whose images are"
            f" finite; {_advice(trainer, module)}"
        )


def _parts(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from (part for part in batch.values() if isinstance(part, Tensor))
    elif isinstance(batch, list | tuple):
        yield from (part for part in batch if isinstance(part, Tensor))


def _spoilt(images: Tensor) -> Tensor:
    return ~images.detach().isfinite().flatten(1).all(1)


def _keys(trainer: pl.Trainer, epoch: int, index: int) -> list[int]:
    """The positions in the training set of a batch's images, where our own sampler has dealt them."""
    sampler = getattr(trainer.train_dataloader, "sampler", None)
    if not isinstance(sampler, EpochBatches) or sampler.epoch != epoch:
        return []
    batch = next(sampler.plan(index), [])
    # of (epoch, position) where the data set is told the epoch
    keys = [key[-1] if isinstance(key, tuple) else key for key in batch]
    return keys if all(isinstance(key, int) for key in keys) else []


def _not_finite(module: pl.LightningModule, state: Mapping[str, Any]) -> list[str]:
    """Parameters, and statistics of BatchNorm, that are not finite; one wait for the device where all are."""
    names = [name for name, _ in module.named_parameters() if isinstance(state.get(name), Tensor)]
    names += [name for name in state if name.rpartition(".")[2] in ("running_mean", "running_var")]
    values = [state[name] for name in names]
    if not values or bool(torch.stack([value.isfinite().all() for value in values]).all()):
        return []
    return [name for name, value in zip(names, values, strict=True) if not bool(value.isfinite().all())]


def _advice(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    rate = module.hparams.get("learning_rate")
    now = f", now {rate:g}" if isinstance(rate, float) else ""
    return f"{_kept(trainer)} (lower learning_rate{now}, or set trainer.gradient_clip_val)"


def _kept(trainer: pl.Trainer) -> str:
    path = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    if path.is_file():
        return f"{path} is from before: go on from it with --ckpt_path last"
    return "no checkpoint had been written: start again"


def _short(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"{shown} and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else shown


_SHOWN = 16
