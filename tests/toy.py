"""A small REDRL job that other processes can run: `python toy.py FOLDER job.json`."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from lit_adv.attacks import PGD, BoundedPatch
from lit_adv.data import AdversarialDataModule, Arrays
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL

__all__ = ["data", "job", "main", "task"]


class Plain(nn.Module):
    """A recogniser without BatchNorm, for which several ranks compute what one does."""

    def __init__(self, channels, classes):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.features = 8 * 16
        self.head = nn.Linear(self.features, classes)

    def forward(self, inputs):
        return self.head(self.trunk(inputs))


class PlainREDRL(REDRL):
    """REDRL with that recogniser."""

    def configure_model(self):
        if self.psi is None:
            super().configure_model()
            torch.manual_seed(5)
            self.psi = Plain(6, self.hparams["num_attacks"])
            self.attribution = self._make_heads(self.psi.features)


def arrays(folder):
    import numpy as np

    path = Path(folder) / "images.npz"
    if not path.exists():
        draws = np.random.default_rng(0)
        np.savez(
            path,
            x_train=draws.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8),
            y_train=np.arange(48) % 3,
            x_test=draws.integers(0, 256, (13, 8, 8, 3), dtype=np.uint8),
            y_test=np.arange(13) % 3,
        )
    return path


def data(folder, batch_size, cache=None, prefill=False, held_out=()):
    torch.manual_seed(1)
    names = ("a", "b", "c") if held_out else ("a", "b")
    victims = {name: Classifier("small_cnn", 3, 8) for name in names}
    return AdversarialDataModule(
        Arrays(path=arrays(folder), validation=8),
        victims,
        {
            "pgd/8": PGD(eps=16 / 255, steps=2),
            "pgd/16": PGD(eps=32 / 255, steps=2),
            "patch/3": BoundedPatch(size=3, steps=2),
        },
        batch_size=batch_size,
        eval_batch_size=5,
        cache_dir=cache,
        prefill=prefill,
        held_out=held_out,
    )


def task(plain=False, heads=()):
    torch.manual_seed(2)
    return (PlainREDRL if plain else REDRL)(
        width=4, blocks=1, recognizer="small", weight_features=0, schedule="onecycle", learning_rate=2e-3, heads=heads
    )


class Record(pl.Callback):
    """Writes down what each batch was, and kills the process where it is told to."""

    def __init__(self, path, kill_at=None):
        self.path, self.kill_at = path, kill_at

    def note(self, stage, batch):
        import zlib

        row = {
            "stage": stage,
            "index": batch.index.tolist(),
            "attack": batch.attack.tolist(),
            "setting": batch.setting.tolist(),
            "victim": batch.victim.tolist(),
            "pixels": [zlib.crc32(image.numpy().tobytes()) for image in batch.adversarial.contiguous()],
        }
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.note(f"train {trainer.current_epoch} {batch_idx}", batch)

    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.note("test", batch)


def job(
    folder,
    *,
    batch_size=8,
    devices=1,
    kill_at=None,
    ckpt=None,
    epochs=3,
    plain=False,
    name="run",
    save_every=None,
    cache=None,
    test_first=False,
    heads=(),
    held_out=(),
):
    folder = Path(folder)
    rank = int(os.environ.get("LOCAL_RANK", 0))
    callbacks = [Record(folder / f"{name}-{rank}.jsonl", kill_at)]
    if save_every:
        callbacks.append(
            pl.callbacks.ModelCheckpoint(
                folder / name, filename="{step}", every_n_train_steps=save_every, save_top_k=-1
            )
        )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(save_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=True,
    )
    module = task(plain, heads)
    source = data(folder, batch_size, cache, prefill=cache is not None, held_out=tuple(held_out))
    if test_first:  # before training, whose rounding differs with the number of ranks
        numbers = trainer.test(module, datamodule=source, verbose=False)[0]
        results = module.results
        trainer.fit(module, datamodule=source, ckpt_path=ckpt)
    else:
        trainer.fit(module, datamodule=source, ckpt_path=ckpt)
        numbers = trainer.test(module, datamodule=source, verbose=False)[0]
        results = module.results
    if trainer.is_global_zero:
        torch.save(module.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.json").write_text(json.dumps({"numbers": numbers, "results": results}))
    return numbers


def main():
    torch.set_num_threads(1)
    job(sys.argv[1], **json.loads(Path(sys.argv[2]).read_text()))


if __name__ == "__main__":
    assert importlib.util.find_spec("lit_adv")
    main()
