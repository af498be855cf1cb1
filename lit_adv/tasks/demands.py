"""What the tasks ask of a trainer, and refuse before anything is read, crafted or started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import nn

# All take the weights apart. Attacks, saliency and averages of weights read them outside Lightning's own passes, and a
# checkpoint is to be one file that others load. Under ModelParallelStrategy Lightning would moreover leave a network
# that does not shard itself to every process by itself.
_SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


def check_trainer(task: pl.LightningModule, one_batch_a_step: Mapping[str, Any] | None = None) -> None:
    """Refuses what no task can do, in `configure_callbacks`: Lightning's first hook, which every process calls.

    Args:
        task: The task, with its trainer.
        one_batch_a_step: Settings of the task under which every batch must be one step of the optimiser: what they do
            is done once a batch, so that several batches would make another step than a large one.

    Raises:
        ValueError: Names the trainer's field, its value and the remedy.
    """
    trainer, name = task.trainer, type(task).__name__
    strategy = trainer.strategy
    if isinstance(strategy, _SHARDED):
        raise ValueError(
            f"{name}: trainer.strategy must keep the weights whole in every process, got {type(strategy).__name__}"
            " (--trainer.strategy=ddp; a network that does not fit takes less with --trainer.precision=bf16-true, a"
            " smaller --data.batch_size and --trainer.accumulate_grad_batches)"
        )
    if trainer.state.fn != TrainerFn.FITTING:
        return
    several = trainer.accumulate_grad_batches
    for field, value in (one_batch_a_step or {}).items():
        if several != 1:
            raise ValueError(
                f"{name}: trainer.accumulate_grad_batches must be 1 with {field} {value!r}, which acts once a batch,"
                f" got {several} (a larger --data.batch_size, or more processes)"
            )


def check_synchronised(task: pl.LightningModule, network: nn.Module) -> None:
    """Refuses `sync_batchnorm` where torch has none, once the network is there.

    Raises:
        ValueError: The network has BatchNorm, and is trained on several CPUs.
    """
    strategy = task.trainer.strategy
    asked = isinstance(strategy, DDPStrategy) and strategy._layer_sync is not None
    if not asked or strategy.root_device.type != "cpu" or task.trainer.state.fn != TrainerFn.FITTING:
        return
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in network.modules()):
        raise ValueError(
            f"{type(task).__name__}: trainer.sync_batchnorm must be false on CPUs, got true: torch synchronises"
            " BatchNorm on GPUs alone (leave it out: each process then normalises by its own images; or take a network"
            " without BatchNorm)"
        )
