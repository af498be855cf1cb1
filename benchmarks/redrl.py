"""Speed of REDRL's training: images a second through Lightning, beside its four networks alone.

    python -m benchmarks.redrl [--size 32] [--batch 36] [--width 32] [--blocks 5] [--recognizer small] [--phi resnet20]
    python -m benchmarks.redrl --size 64 --batch 128 --width 64 --blocks 23 --recognizer resnet18 --phi resnet50 \
        --features vgg16_bn:relu3_3 --device cuda --precision bf16-mixed

The run is a whole one: the adversarial data module with all images in its cache, the task, Adam, a trainer. The
networks alone do just what a step asks of them, on tensors that are there already: G and Psi forward and back, F and
Phi forward on the clean images, forward and back to G's images. All in turns, the best of some rounds, in processor
time on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.attacks import timed
from benchmarks.perceptual import Figure, show, write
from lit_adv.attacks import BIM, FGM, FGSM, PGD, RandFGSM
from lit_adv.data import AdversarialDataModule, Arrays
from lit_adv.models import Classifier
from lit_adv.tasks import REDRL


class Watch(pl.Callback):
    """The time of each epoch, the device's work included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = _now(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds.append(_now(pl_module.device) - self._began)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes ``redrl_speed.csv``."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures = measure(options)
    show(figures)
    if options.out:
        write(figures, options.out / "redrl_speed.csv")


def measure(options: argparse.Namespace) -> list[Figure]:
    """The seconds of a step in the trainer and in the networks alone, and their ratio."""
    device = torch.device(options.device)
    pl.seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        task, data = _task(options), _data(options, Path(folder))
        watch = Watch()
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=options.precision,
            max_epochs=options.rounds + 1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[watch],
        )
        trainer.fit(task, datamodule=data)
        steps = trainer.num_training_batches
        # the first epoch warms up
        whole = min(watch.seconds[1:]) / steps
        alone = networks(task.to(device), data, options, device)
    setting = (
        f"{options.batch} images of {options.size} x {options.size}, G {options.blocks} blocks of {options.width}, "
        f"Psi {options.recognizer}, Phi {options.phi}, F {options.features or 'none'}, {options.device}, "
        f"{options.precision}"
    )
    total = sum(alone.values())
    figures = [Figure(f"training ({setting})", options.batch / whole, "images/s")]
    figures += [Figure(f"{name} alone, of the four", 100 * spent / total, "%") for name, spent in alone.items()]
    share = 100 * total / whole
    return [*figures, Figure("the four networks' time, of a step's", share, "%", "at least 90", share >= 90)]


def networks(
    task: REDRL, data: AdversarialDataModule, options: argparse.Namespace, device: torch.device
) -> dict[str, float]:
    """Seconds of each network's part of a step, the best of some rounds in which all take turns."""
    images = torch.rand(options.batch, data.in_channels, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    # the gradient goes on into G
    seen = torch.cat([images, images], 1).requires_grad_()
    label = torch.arange(options.batch, device=device) % len(data.attack_classes)
    assert task.psi is not None
    assert task.reconstructor is not None
    reconstructor, psi = task.reconstructor.train(), task.psi.train()
    phi = task.frozen("phi")
    parts: dict[str, Callable[[], Any]] = {
        "G": lambda: _back(reconstructor(images).float().sum(), reconstructor),
        "Psi": lambda: _back(F.cross_entropy(psi(seen).float(), label), psi),
        "Phi": lambda: _frozen(phi, images),
    }
    if options.features:
        features = task.frozen("features")
        parts["F"] = lambda: _frozen(features, images)
    best = dict.fromkeys(parts, math.inf)
    for _ in range(2 * options.rounds + 1):
        for name, part in parts.items():
            with _cast(options.precision, device):
                best[name] = min(best[name], timed(part, device))
    return best


def _back(total: Tensor, network: nn.Module) -> None:
    total.backward()
    network.zero_grad()


def _frozen(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        network(images)
    made = images.clone().requires_grad_()
    torch.autograd.grad(network(made).float().sum(), made)


def _task(options: argparse.Namespace) -> REDRL:
    network, _, layer = options.features.partition(":")
    return REDRL(
        width=options.width,
        blocks=options.blocks,
        recognizer=options.recognizer,
        feature_network=network or "vgg16_bn",
        feature_layer=layer or "relu3_3",
        feature_weights=None,
        weight_features=0.1 if options.features else 0.0,
        compile=options.compile,
    )


def _data(options: argparse.Namespace, folder: Path) -> AdversarialDataModule:
    draws = np.random.default_rng(0)
    side, count = options.size, options.batch * options.steps
    images = {
        "x_train": draws.integers(0, 256, (count, side, side, 3), dtype=np.uint8),
        "x_test": draws.integers(0, 256, (10, side, side, 3), dtype=np.uint8),
    }
    labels = {f"y_{name[2:]}": np.arange(len(each)) % 10 for name, each in images.items()}
    np.savez(folder / "images.npz", **images, **labels)
    # attacks of a step or two, one a class as in REDRL: what they make is read from the cache
    attacks = {"pgd": PGD(steps=2), "fgsm": FGSM(), "fgm": FGM(), "bim": BIM(steps=2), "rand": RandFGSM()}
    phi = Classifier(options.phi, 10, side).eval()
    return AdversarialDataModule(
        Arrays(str(folder / "images.npz"), validation=10),
        {"phi": phi},
        attacks,
        batch_size=options.batch,
        num_workers=options.workers,
        cache_dir=str(folder / "cache"),
        prefill=True,
    )


def _cast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    return contextlib.nullcontext() if half is None else torch.autocast(device.type, dtype=half)


def _now(device: torch.device) -> float:
    """Seconds on a clock that other processes do not move: the processor's own, or the wall's once a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--batch", type=int, default=36)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--recognizer", choices=["resnet18", "small"], default="small")
    parser.add_argument("--phi", default="resnet20", help="a classifier of lit_adv, with random weights")
    parser.add_argument("--features", default="", metavar="NETWORK:LAYER", help="F; none without it")
    parser.add_argument("--steps", type=int, default=10, help="steps an epoch")
    parser.add_argument("--rounds", type=int, default=4, help="epochs; the best counts")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed", "16-mixed"])
    parser.add_argument("--compile", action="store_true", help="G through torch.compile, alone as well")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="folder for redrl_speed.csv")
    return parser


if __name__ == "__main__":
    main()
