"""Accuracy over the norm: the worst perturbation, the worst in a random subspace, and a random one.

A classifier that an adversary undoes at a small L2 norm stands random noise of many times that norm: the closest
boundary is near, and most directions do not lead to it. In a random subspace of m dimensions the adversary needs about
sqrt(d / m) times the norm of d free dimensions. After Fawzi, Moosavi-Dezfooli & Frossard 2016, "Robustness of
classifiers: from adversarial to random noise" (arXiv:1608.08967), sections 3 and 4.

    python examples/lessons/norms.py --out runs/lessons
    python examples/lessons/norms.py --checkpoint runs/digits/small_cnn/checkpoints/best.ckpt
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure
from torch import nn

from lit_adv import evaluate
from lit_adv.attacks import PGD, Attack, RandomNoise, SemiRandomNoise
from lit_adv.data import Digits
from lit_adv.models import load_classifier
from lit_adv.tasks import VictimClassifier

KINDS: dict[str, Callable[[float], Attack]] = {
    "adversarial": lambda eps: PGD(norm="l2", eps=eps, step_size=eps / 5, steps=15),
    "semi-random, 50 dimensions": lambda eps: SemiRandomNoise(eps=eps, dimension=50),
    "semi-random, 10 dimensions": lambda eps: SemiRandomNoise(eps=eps, dimension=10),
    "random": lambda eps: RandomNoise(norm="l2", eps=eps),
}


def victim(data: Digits, epochs: int) -> nn.Module:
    """A small network trained on clean digits."""
    pl.seed_everything(0, verbose=False)
    task = VictimClassifier("small_cnn", learning_rate=0.05, milestones=(epochs - 3, epochs - 1))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(accelerator="cpu", max_epochs=epochs, enable_model_summary=False, **quiet).fit(task, data)
    return task.model.eval()


def main(arguments: list[str] | None = None) -> list[dict[str, float | str]]:
    """Writes ``norms.csv`` and ``norms.png``; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lessons"), help="folder of the table and the figure")
    parser.add_argument("--checkpoint", help="a classifier of 16 x 16 digits; one is trained without it")
    parser.add_argument("--norms", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4, 6], help="L2, images in [0, 1]")
    parser.add_argument("--images", type=int, default=100, help="of the test set")
    parser.add_argument("--epochs", type=int, default=9, help="of training")
    given = parser.parse_args(arguments)
    if min(given.norms) <= 0 or given.images < 1 or given.epochs < 4:
        parser.error("--norms must be above 0, --images at least 1, --epochs at least 4")
    data = Digits(image_size=16, batch_size=64)
    model = load_classifier(given.checkpoint) if given.checkpoint else victim(data, given.epochs)
    data.setup("test")
    pairs = [data.test_dataset.batch(range(min(given.images, len(data.test_dataset))))]
    rows: list[dict[str, float | str]] = []
    for kind, attack in KINDS.items():
        found = evaluate(model, pairs, {f"{eps:g}": attack(eps) for eps in given.norms})
        rows.append({"kind": kind, "norm": 0.0, "accuracy": found.clean_accuracy or 0.0})
        rows += [
            {"kind": kind, "norm": float(eps), "accuracy": each["robust_accuracy"] or 0.0}
            for eps, each in found.attacks.items()
        ]
        print(f"{kind:28}", "  ".join(f"{row['accuracy']:4.0%}" for row in rows if row["kind"] == kind))
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "norms.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["kind", "norm", "accuracy"])
        writer.writeheader()
        writer.writerows(rows)
    figure(rows).savefig(given.out / "norms.png")
    print(f"figure: {given.out / 'norms.png'}")
    return rows


def figure(rows: list[dict[str, float | str]]) -> Figure:
    """A line a kind of perturbation."""
    made = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = made.subplots()
    for kind, marker in zip(KINDS, "osD^", strict=True):
        line = [(row["norm"], row["accuracy"]) for row in rows if row["kind"] == kind]
        axes.plot(*zip(*line, strict=True), marker=marker, markersize=4, label=kind)
    axes.set(xlabel="L2 norm of the perturbation", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title("How far is it to the next error?", fontsize=11, fontweight="bold")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return made


if __name__ == "__main__":
    main()
