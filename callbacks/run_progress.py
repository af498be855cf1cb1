"""Progress that can be followed on a terminal and in a log file."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks.progress.rich_progress import RichProgressBar, RichProgressBarTheme
from rich.console import Console


class RunProgress(RichProgressBar):
    """Rich progress bar on a terminal; elsewhere plain lines, one an epoch and one every `interval` seconds.

    A bar in a file or a pipe shows nothing until it is finished. The lines hold the epoch, the metrics logged with
    `prog_bar=True`, the time taken and the time left. A stage's bar ends with the stage, so that tables come below it.

    Args:
        refresh_rate: Refreshes of the bar a second, >= 0; 0 shows no progress at all.
        leave: Leave the bar of each epoch on the terminal.
        interval: Seconds between two lines within an epoch where there is no terminal, > 0.
        console_kwargs: Arguments of `rich.console.Console`.

    Raises:
        ValueError: If `interval` is not positive.
    """

    def __init__(
        self,
        refresh_rate: int = 10,
        leave: bool = False,
        interval: float = 30.0,
        console_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not interval > 0:
            raise ValueError(f"RunProgress: interval must be > 0, got {interval} (seconds between two lines)")
        theme = RichProgressBarTheme(
            description="bold",
            progress_bar="#2186eb",
            progress_bar_finished="#1a7f37",
            progress_bar_pulse="#2186eb",
            processing_speed="dim",
            metrics="",
            metrics_text_delimiter="  ",
        )
        super().__init__(refresh_rate=refresh_rate, leave=leave, theme=theme, console_kwargs=console_kwargs)
        self.interval = interval
        console = Console(**self._console_kwargs)
        self._bar = console.is_interactive or console.is_jupyter
        self._narrow = console.width < 100
        self._started = self._epoch_started = self._last_line = 0.0
        self._epochs_done = 0

    @property
    def is_enabled(self) -> bool:
        """Whether there is a bar."""
        return self._bar and super().is_enabled

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        columns = super().configure_columns(trainer)
        if self._narrow:
            # leaves the metrics room to stand beside the bar
            columns[1].bar_width = 12
            del columns[4]
        return columns

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        # the logger's version says nothing about progress
        metrics.pop("v_num", None)
        return metrics

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_sanity_check_start(trainer, pl_module)
        self._epoch_started = self._last_line = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # a run resumed in the middle of an epoch has no epoch start
        self._started = self._epoch_started = self._last_line = time.monotonic()
        self._epochs_done = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._epoch_started = self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch_line(trainer, _epoch(trainer), batch_idx, self.total_train_batches, self._epoch_started)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if trainer.sanity_checking:
            stage, total = "sanity check", trainer.num_sanity_val_batches[dataloader_idx]
        else:
            stage = f"{_epoch(trainer)}, validation" if trainer.state.fn == "fit" else "validation"
            total = trainer.num_val_batches[dataloader_idx]
        self._batch_line(trainer, stage, batch_idx, total, self._epoch_started)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        now, self._epochs_done = time.monotonic(), self._epochs_done + 1
        words = [_epoch(trainer), *self._metrics(trainer), f"{_clock(now - self._epoch_started)} an epoch"]
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        if left > 0:
            words.append(f"{_clock(left * (now - self._started) / self._epochs_done)} left")
        self._line(*words)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._stop_progress()
        self._line(f"trained {self._epochs_done} epochs in {_clock(time.monotonic() - self._started)}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._begin("validation", trainer.num_val_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._stop_progress()
            self._end("validation")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._begin("test", trainer.num_test_batches)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._batch_line(trainer, "test", batch_idx, trainer.num_test_batches[dataloader_idx], self._epoch_started)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        self._stop_progress()
        self._end("test")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._begin("predict", trainer.num_predict_batches)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._batch_line(
            trainer, "predict", batch_idx, trainer.num_predict_batches[dataloader_idx], self._epoch_started
        )

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        self._stop_progress()
        self._end("predict")

    def _begin(self, stage: str, batches: list[int | float]) -> None:
        self._epoch_started = self._last_line = time.monotonic()
        self._line(f"{stage}: {_count(sum(batches))} batches")

    def _end(self, stage: str) -> None:
        self._line(f"{stage}: done in {_clock(time.monotonic() - self._epoch_started)}")

    def _batch_line(self, trainer: pl.Trainer, stage: str, batch_idx: int, total: float, started: float) -> None:
        now = time.monotonic()
        if now - self._last_line >= self.interval:
            self._last_line = now
            metrics = self._metrics(trainer) if trainer.training else []
            self._line(stage, f"batch {batch_idx + 1}/{_count(total)}", *metrics, f"{_clock(now - started)} so far")

    def _metrics(self, trainer: pl.Trainer) -> list[str]:
        return [f"{name} {float(value):.3f}" for name, value in trainer.progress_bar_metrics.items()]

    def _line(self, *words: str) -> None:
        if not self._bar and self._enabled and self.refresh_rate > 0:
            # a file or a pipe is buffered in blocks otherwise
            print("  ".join(words), flush=True)


def _epoch(trainer: pl.Trainer) -> str:
    # the bar counts from 0 as well, and so do checkpoints and metrics.csv
    last = (trainer.max_epochs or 0) - 1
    return f"epoch {trainer.current_epoch}" + (f"/{last}" if last >= 0 else "")


def _count(batches: float) -> str:
    return str(int(batches)) if math.isfinite(batches) else "?"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
