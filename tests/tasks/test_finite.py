"""Training that stops before anything is saved of what is no number."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lit_adv import runs
from lit_adv.attacks import FGSM, PGD
from lit_adv.data import AdversarialDataModule, Arrays
from lit_adv.data.batches import ShuffledBatches
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL, AdversarialTraining, ParsevalTraining, PerturbationGenerator, VictimClassifier
from lit_adv.tasks.finite import FiniteTraining

pytestmark = pytest.mark.filterwarnings("ignore:.*could not find the monitored key")


class Plain(pl.LightningModule):
    """Somebody else's task."""

    def __init__(self, learning_rate=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Conv2d(3, 1, 8)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["learning_rate"])


def arrays(folder, batch_size=8):
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(
        folder / "images.npz", x_train=images[:32], y_train=np.arange(32) % 3, x_test=images, y_test=np.arange(40) % 3
    )
    return Arrays(path=folder / "images.npz", batch_size=batch_size)


def trainer(folder, *callbacks, epochs=3, checkpoint=True, **options):
    settings = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings |= {"num_sanity_val_steps": 0, "default_root_dir": folder, "limit_val_batches": 0, "max_epochs": epochs}
    kept = [runs.Checkpoint(every_n_train_steps=1)] if checkpoint else []
    return pl.Trainer(callbacks=[*callbacks, *kept], enable_checkpointing=checkpoint, **(settings | options))


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


class Poison(pl.Callback):
    """Makes the gradient of one step NaN."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == self.step:
            next(p for p in module.parameters() if p.grad is not None).grad.mul_(math.nan)


def victim():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier("small_cnn", 3, 8)


TASKS = {
    "victim": lambda: VictimClassifier("small_cnn"),
    "adversarial": lambda: AdversarialTraining("small_cnn", attack=FGSM(eps=0.1)),
    "free": lambda: AdversarialTraining("small_cnn", attack=FGSM(eps=0.1), replays=2),
    "parseval": lambda: ParsevalTraining("parseval_wrn10_1_bn"),
    "generator": lambda: PerturbationGenerator(victim(), width=4, blocks=1),
    "redrl": lambda: REDRL(width=4, blocks=1, recognizer="small", weight_features=0),
    "anybody's": Plain,
}


def given(task, folder):
    data = arrays(folder)
    if task != "redrl":
        return data
    return AdversarialDataModule(data, {"a": victim()}, {"pgd": PGD(eps=0.1, steps=1)}, batch_size=8, variants=2)


@pytest.mark.parametrize("name", TASKS)
def test_weights_that_a_step_has_spoilt_are_not_saved(tmp_path, name):
    pl.seed_everything(0, verbose=False)
    extra = [FiniteTraining()] if name == "anybody's" else []
    # two steps of the optimiser a batch: the second one, after which no loss is computed
    poison = Poison(3 if name == "free" else 2)
    with pytest.raises(
        ValueError, match=r"weights must be finite, got NaN or infinity in .* epoch 0 .*--ckpt_path last"
    ):
        trainer(tmp_path, poison, *extra).fit(TASKS[name](), datamodule=given(name, tmp_path))
    kept = last(tmp_path)
    assert kept["global_step"] == 2
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


@pytest.mark.parametrize("name", ["victim", "free", "anybody's"])
def test_a_spoilt_image_is_named_by_its_position(tmp_path, name):
    data = arrays(tmp_path)
    data.setup("fit")
    data.train_dataset.images = data.train_dataset.images.float() / 255
    spoilt = next(ShuffledBatches(data.train_dataset, 8, seed=data.seed).plan(2))[3]
    data.train_dataset.images[spoilt, 0, 0, 0] = math.nan
    extra = [FiniteTraining()] if name == "anybody's" else []
    message = (
        f"images must be finite, got NaN or infinity in images {spoilt} of the training set, in batch 2 of epoch 0"
    )
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, *extra).fit(TASKS[name](), datamodule=data)
    assert last(tmp_path)["global_step"] == (4 if name == "free" else 2)


@pytest.mark.parametrize("name", ["victim", "redrl"])
def test_a_loss_that_explodes_names_batch_images_and_remedy(tmp_path, name):
    pl.seed_everything(0, verbose=False)
    task = {"victim": VictimClassifier, "redrl": REDRL}[name]
    given_rate = {**TASKS[name]().hparams, "learning_rate": 1e30}
    data = given(name, tmp_path)
    where = r"in batch \d of epoch 0 \(images (\d+, ){7}\d+ of the training set\)"
    message = rf"the loss must be finite, got NaN or infinity {where}.*finite; .*learning_rate, now 1e\+30"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, checkpoint=False).fit(task(**given_rate), datamodule=data)


def test_plain_loaders_name_the_place_in_the_batch(tmp_path):
    images = torch.rand(8, 3, 8, 8)
    images[5] = math.inf
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=4)
    with pytest.raises(
        ValueError, match="Plain: images must be finite, got NaN or infinity in images 1 of the batch, in batch 1"
    ):
        trainer(tmp_path, FiniteTraining()).fit(Plain(), loader, loader)


def test_a_run_stopped_by_nan_goes_on_from_what_it_kept(tmp_path):
    def fit(folder, *extra, resume=None):
        pl.seed_everything(0, verbose=False)
        run = trainer(folder, *extra)
        run.fit(TASKS["victim"](), datamodule=arrays(tmp_path), ckpt_path=resume, weights_only=True)

    fit(tmp_path / "whole")
    with pytest.raises(ValueError, match="weights must be finite"):
        fit(tmp_path / "stopped", Poison(6))
    fit(tmp_path / "stopped", resume=tmp_path / "stopped/checkpoints/last.ckpt")
    whole, resumed = last(tmp_path / "whole"), last(tmp_path / "stopped")
    assert whole["global_step"] == resumed["global_step"] == 12
    assert all(torch.equal(value, resumed["state_dict"][key]) for key, value in whole["state_dict"].items())
