"""Zero risk and no robustness: a classifier that is always right, by a difference that nobody sees.

Images hold one stripe, vertical or horizontal: that is what a person would tell them apart by. Vertical ones are also
brighter by ``bias`` everywhere, horizontal ones darker, too little to be seen. A linear classifier cannot know stripes
that may be anywhere, but the mean brightness tells it all: it makes no error, and a change of about ``bias`` in every
pixel undoes it. A convolutional network sees the stripes as well, and takes a much larger change. After Fawzi, Fawzi &
Frossard 2018, "Analysis of classifiers' robustness to adversarial perturbations", section 3 (arXiv:1502.02590).

    python examples/lessons/stripes.py --out runs/lessons
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lit_adv.attacks import PGD, DeepFool

SIZE = 16


def stripes(count: int, bias: float, seed: int) -> tuple[Tensor, Tensor]:
    """Images ``(count, 1, 16, 16)`` in [0, 1] and labels, 1 for vertical stripes, which are brighter by ``2 bias``."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.full((count, 1, SIZE, SIZE), 0.4)
    for image, label, place in zip(images, labels, torch.randint(SIZE, (count,), generator=draws), strict=True):
        image[0, :, place] += 0.3 * label
        image[0, place, :] += 0.3 * (1 - label)
    return images + bias * (2 * labels - 1).view(-1, 1, 1, 1), labels


def networks() -> dict[str, nn.Module]:
    """A linear classifier and a small convolutional one."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 2))
    convolutional = nn.Sequential(
        nn.Conv2d(1, 8, (SIZE, 1)), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    return {"linear": linear, "convolutional": convolutional}


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """Cross-entropy on all images at once."""
    # the brightness tells classes apart by so little that steps along the gradient would take very long to find it
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(model(images), labels)
        value.backward()
        return value

    optimizer.step(loss)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).float().mean())


def main(arguments: list[str] | None = None) -> list[dict[str, float | str]]:
    """Trains both, attacks both, writes ``stripes.csv`` and ``stripes.png``; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lessons"), help="folder of the table and the figure")
    parser.add_argument("--bias", type=float, default=4 / 255, help="in pixel units of [0, 1]; 4/255 cannot be seen")
    parser.add_argument("--steps", type=int, default=300, help="of training")
    given = parser.parse_args(arguments)
    if not 0 < given.bias < 0.1:
        parser.error(f"--bias must be in (0, 0.1), got {given.bias}")
    images, labels = stripes(512, given.bias, seed=0)
    unseen, truth = stripes(128, given.bias, seed=1)
    rows: list[dict[str, float | str]] = []
    pictures = {"clean": unseen[:2]}
    for name, model in networks().items():
        train(model, images, labels, given.steps)
        twice = 2 * given.bias
        attacked = PGD(eps=twice, step_size=twice / 4, steps=20)(model, unseen, truth, seed=0)
        nearest = DeepFool(steps=100).run(model, unseen, truth)
        pictures[f"fools the {name} one"] = nearest.images[:2]
        rows.append(
            {
                "classifier": name,
                "accuracy": accuracy(model, unseen, truth),
                "accuracy_within_twice_the_bias": accuracy(model, attacked, truth),
                "mean_minimal_l2": float(nearest.norms["l2"][nearest.success].mean()),
            }
        )
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "stripes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure(pictures).savefig(given.out / "stripes.png")
    for row in rows:
        print(
            f"{row['classifier']:14} accuracy {row['accuracy']:.0%}, within twice the bias"
            f" {row['accuracy_within_twice_the_bias']:.0%}, nearest error at L2 {row['mean_minimal_l2']:.2f}"
        )
    print(f"figure: {given.out / 'stripes.png'}")
    return rows


def figure(pictures: dict[str, Tensor]) -> Figure:
    """A row a class, a column a kind of image."""
    made = Figure(figsize=(2.2 * len(pictures), 4.8), dpi=150, layout="constrained")
    grid = made.subplots(2, len(pictures))
    for column, (title, images) in enumerate(pictures.items()):
        for row, image in enumerate(images):
            grid[row, column].imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
            grid[row, column].set_axis_off()
        grid[0, column].set_title(title, fontsize=9)
    made.suptitle("The nearest images that fool each classifier", fontsize=11, fontweight="bold")
    return made


if __name__ == "__main__":
    main()
