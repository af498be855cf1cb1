"""Images per second and passes per image of the attacks, beside a peer's where one is installed, in one run.

    python -m benchmarks.attacks [--images 64] [--threads 1] [--out docs/attacks.csv]

One small network, the same images, labels and settings for all; our attack and the peer's take turns, the best of the
rounds counts. Passes are counted by hooks on the network, per image, for both.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lit_adv.attacks import FGSM, PGD, Attack, BoundedPatch, CarliniWagnerL2, CarliniWagnerLinf, DeepFool
from lit_adv.models import Classifier

Crafts = Callable[[nn.Module, Tensor, Tensor], Tensor]
COLUMNS = ("attack", "library", "images/s", "ratio", "forwards", "backwards", "success", "mean L2")


def main() -> None:
    """Runs every attack and prints the table."""
    parser = argparse.ArgumentParser(description="Attacks against their peers, one run")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = Classifier("small_cnn", 10, 32).eval()
    images = (torch.rand(options.images, 3, 32, 32) * 255).round() / 255
    with torch.no_grad():
        labels = model(images).argmax(1)
    found = []
    for name, attack in _ours().items():
        makers: dict[str, Crafts] = {"lit_adv": _call(attack), **_peers(name)}
        best: dict[str, float] = {}
        shown: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for library, craft in makers.items():
                seconds, shown[library] = _measure(craft, model, images, labels)
                best[library] = min(best.get(library, seconds), seconds)
        for library in makers:
            speed = len(images) / best[library]
            ratio = best[library] / best["lit_adv"] if library != "lit_adv" else 1.0
            found.append(dict(zip(COLUMNS, (name, library, speed, ratio, *shown[library].values()), strict=True)))
    _show(found)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(found)


def _ours() -> dict[str, Attack]:
    return {
        "FGSM": FGSM(eps=8 / 255),
        "PGD-20": PGD(eps=8 / 255, step_size=2 / 255, steps=20),
        "PGD-L2-20": PGD(norm="l2", eps=0.5, step_size=0.1, steps=20),
        "DeepFool": DeepFool(steps=50),
        "CW-L2-50": CarliniWagnerL2(c=1.0, steps=50, search_steps=0, abort_early=False),
        "CW-Linf-50": CarliniWagnerLinf(steps=50),
        "Patch-20": BoundedPatch(size=8, steps=20),
    }


def _peers(name: str) -> dict[str, Crafts]:
    if importlib.util.find_spec("torchattacks") is None:
        return {}
    import torchattacks

    made = {
        "FGSM": lambda m: torchattacks.FGSM(m, eps=8 / 255),
        "PGD-20": lambda m: torchattacks.PGD(m, eps=8 / 255, alpha=2 / 255, steps=20),
        "PGD-L2-20": lambda m: torchattacks.PGDL2(m, eps=0.5, alpha=0.1, steps=20),
        "DeepFool": lambda m: torchattacks.DeepFool(m, steps=50),
        "CW-L2-50": lambda m: torchattacks.CW(m, c=1, steps=50),
    }
    if name not in made:
        return {}
    return {"torchattacks": lambda model, images, labels: made[name](model)(images, labels)}


def _call(attack: Attack) -> Crafts:
    return lambda model, images, labels: attack(model, images, labels, seed=0)


def _measure(craft: Crafts, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, dict[str, float]]:
    passes = {"forwards": 0.0, "backwards": 0.0}

    def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        passes["forwards"] += len(inputs[0]) / len(images)
        if output.requires_grad:
            output.register_hook(
                lambda gradient: passes.__setitem__("backwards", passes["backwards"] + _rows(gradient))
            )

    def _rows(gradient: Tensor) -> float:
        return len(gradient) / len(images)

    handle = model.register_forward_hook(forward)
    began = time.process_time()
    adversarial = craft(model, images, labels)
    seconds = time.process_time() - began
    handle.remove()
    with torch.no_grad():
        success = (model(adversarial).argmax(1) != labels).float().mean().item()
    distance = (adversarial - images).flatten(1).norm(dim=1).mean().item()
    return seconds, {**passes, "success": success, "mean L2": distance}


def _show(rows: list[dict[str, float | str]]) -> None:
    table = Table(title="one thread, CPU time; ratio: ours over the peer's images per second")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
