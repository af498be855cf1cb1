"""A resumed run uses its own learning rate, decay and schedule, and changes nothing where they are the same."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_adv.tasks import VictimClassifier
from lit_adv.tasks.resuming import apply_settings, changed_settings


class Toy(pl.LightningModule):
    """REDRL's two schedules on one layer."""

    def __init__(self, schedule, learning_rate=0.1, weight_decay=0.01, milestones=(2, 4)):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(3, 2)
        self.rates, self._changed = [], set()

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def factor(self, epoch):
        return 0.5 ** sum(epoch >= milestone for milestone in self.hparams.milestones)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), self.hparams.learning_rate,
                                     weight_decay=self.hparams.weight_decay)  # fmt: skip
        if self.hparams.schedule == "onecycle":
            total = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.learning_rate, total_steps=total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)]

    def on_load_checkpoint(self, checkpoint):
        self._changed = changed_settings(self, checkpoint, ("learning_rate", "weight_decay", "milestones"))

    def on_train_start(self):
        settings = {"lr": self.hparams.learning_rate, "weight_decay": self.hparams.weight_decay}
        apply_settings(self, self._changed, [settings])

    def on_before_optimizer_step(self, optimizer):
        group = optimizer.param_groups[0]
        self.rates.append((group["lr"], group["weight_decay"]))


def fit(tmp_path, task, epochs, ckpt_path=None):
    trainer = pl.Trainer(max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
                         accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path)  # fmt: skip
    loader = DataLoader(TensorDataset(torch.rand(8, 3)), batch_size=4)
    trainer.fit(task, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize("schedule", ["onecycle", "lambda"])
def test_nothing_changes_where_nothing_is_changed(schedule, tmp_path):
    whole = Toy(schedule)
    fit(tmp_path, whole, 6)
    half = Toy(schedule)
    trainer = fit(tmp_path, half, 6) if schedule == "onecycle" else fit(tmp_path, half, 3)
    if schedule == "onecycle":  # its length is the whole run's
        half = Toy(schedule)
        half.on_train_epoch_end = lambda: setattr(half.trainer, "should_stop", half.current_epoch == 2)
        trainer = fit(tmp_path, half, 6)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    rest = Toy(schedule)
    fit(tmp_path, rest, 6, tmp_path / "half.ckpt")
    assert half.rates + rest.rates == whole.rates


@pytest.mark.parametrize("schedule", ["onecycle", "lambda"])
def test_a_new_rate_and_decay_are_used_from_where_the_run_was(schedule, tmp_path):
    whole = Toy(schedule, learning_rate=0.02, weight_decay=0.3, milestones=(1, 4))
    fit(tmp_path, whole, 6)
    half = Toy(schedule)
    half.on_train_epoch_end = lambda: setattr(half.trainer, "should_stop", half.current_epoch == 2)
    fit(tmp_path, half, 6).save_checkpoint(tmp_path / "half.ckpt")
    rest = Toy(schedule, learning_rate=0.02, weight_decay=0.3, milestones=(1, 4))
    fit(tmp_path, rest, 6, tmp_path / "half.ckpt")
    assert len(rest.rates) == 6
    assert rest.rates == [pytest.approx(pair) for pair in whole.rates[6:]]


def test_a_cycle_becomes_as_long_as_the_run(tmp_path):
    half = Toy("onecycle")
    fit(tmp_path, half, 3).save_checkpoint(tmp_path / "half.ckpt")
    whole, rest = Toy("onecycle"), Toy("onecycle")
    fit(tmp_path, whole, 6)
    fit(tmp_path, rest, 6, tmp_path / "half.ckpt")
    assert rest.rates == [pytest.approx(pair) for pair in whole.rates[6:]]


def test_a_victim_takes_its_milestones_and_momentum(tmp_path):
    def task(**changes):
        torch.manual_seed(0)
        settings = {"num_classes": 2, "image_size": 8, "in_channels": 1, "milestones": (2, 4), "gamma": 0.5}
        return VictimClassifier("small_cnn", **(settings | changes))

    def run(task, epochs, ckpt_path=None):
        trainer = pl.Trainer(max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
                             accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path)  # fmt: skip
        data = TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
        loader = DataLoader(data, batch_size=2)
        trainer.fit(task, loader, loader, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    run(task(), 3).save_checkpoint(tmp_path / "half.ckpt")
    changed = task(learning_rate=0.5, milestones=(1, 2, 4), momentum=0, weight_decay=0.1)
    group = run(changed, 4, tmp_path / "half.ckpt").optimizers[0].param_groups[0]
    assert group["lr"] == pytest.approx(0.5 * 0.5**3)
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0, False, 0.1)
