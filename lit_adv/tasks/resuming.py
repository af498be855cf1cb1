"""What a resumed run takes from its own settings rather than from the checkpoint: the optimiser's."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR


def changed_settings(task: pl.LightningModule, checkpoint: Mapping[str, Any], fields: Sequence[str]) -> set[str]:
    """The hyperparameters among ``fields`` that a checkpoint was trained with other values of."""
    stored = checkpoint.get("hyper_parameters", {})
    return {field for field in fields if field in stored and _plain(stored[field]) != _plain(task.hparams[field])}


def apply_settings(task: pl.LightningModule, changed: set[str], groups: Sequence[Mapping[str, Any]]) -> None:
    """Puts what has changed into the restored optimiser and schedule, which goes on from where it was.

    A checkpoint restores optimiser and schedule whole, so that otherwise a new learning rate would be printed, recorded
    and not used. Where nothing has changed, nothing is touched: a resumed run equals one that was not interrupted.

    Args:
        task: The task, in `on_train_start`.
        changed: As `changed_settings` gives it.
        groups: For each group of parameters the settings that it should have; ``lr`` is the full learning rate.
    """
    optimizer, schedule = task.trainer.optimizers[0], task.trainer.lr_scheduler_configs[0].scheduler
    total = int(task.trainer.estimated_stepping_batches) if isinstance(schedule, OneCycleLR) else 0
    longer = isinstance(schedule, OneCycleLR) and total != schedule.total_steps
    if not changed and not longer:
        return
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in settings.items() if key != "lr"})
        group["initial_lr"] = settings["lr"]
    schedule.base_lrs = [settings["lr"] for settings in groups]
    if isinstance(schedule, MultiStepLR):
        schedule.milestones, schedule.gamma = Counter(task.hparams["milestones"]), float(task.hparams["gamma"])
        passed = bisect_right(sorted(task.hparams["milestones"]), schedule.last_epoch)
        rates = [rate * schedule.gamma**passed for rate in schedule.base_lrs]
    elif isinstance(schedule, OneCycleLR):
        rates = _cycle(optimizer, schedule, [float(settings["lr"]) for settings in groups], total)
    else:
        assert isinstance(schedule, LambdaLR)
        shares = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [rate * share(schedule.last_epoch) for rate, share in shares]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _cycle(optimizer: Optimizer, schedule: OneCycleLR, rates: list[float], total: int) -> list[Any]:
    step = schedule.last_epoch
    anew = OneCycleLR(optimizer, max_lr=rates, total_steps=total)  # also puts its rates into the groups
    for name in ("total_steps", "_schedule_phases", "base_lrs"):
        setattr(schedule, name, getattr(anew, name))
    schedule.last_epoch = min(step, total)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is no step; it is not meant to be one
        return list(schedule.get_lr())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
