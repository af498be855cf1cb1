"""Speed of parameter saliency: beside one plain forward and backward pass of the batch, and beside a loop.

    python -m benchmarks.saliency [--images 32] [--size 32] [--networks resnet18 vgg19_bn] [--device cuda] [--out docs]

All in one process with one thread, in processor time, the best of some rounds in which all take turns. The plain pass
takes the gradients of all weights, as a training step does. The loop takes the images one by one; the input-space maps
are those of the default settings.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from benchmarks.attacks import timed
from benchmarks.perceptual import Figure, show, write
from lit_adv.explain import input_saliency, parameter_saliency, saliency_statistics


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes ``saliency_speed.csv``."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    figures: list[Figure] = []
    for name in options.networks:
        figures += times(name, options.images, options.size, options.rounds, device, options.maps)
    show(figures)
    if options.out:
        write(figures, options.out / "saliency_speed.csv")


def times(name: str, images: int, size: int, rounds: int, device: torch.device, maps: int) -> Iterator[Figure]:
    """Times an image of the plain passes, the saliency, the loop and the maps, and their ratios.

    Args:
        name: A network of torchvision, with random weights.
        images: Batch size.
        size: Side of the images in pixels.
        rounds: Timed calls; the best counts. Of the loop and of the maps half as many.
        device: Where.
        maps: Images of the input-space maps; 0 leaves them out.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(models, name)(num_classes=10).eval().to(device)
        x, y = torch.rand(images, 3, size, size).to(device), (torch.arange(images) % 10).to(device)
    weights = list(model.parameters())

    def plain() -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), weights)

    best = dict.fromkeys(("plain", "saliency", "loop", "maps"), math.inf)
    statistics = saliency_statistics(model).to(device)
    statistics.update(parameter_saliency(model, x, y))
    few = x[: max(maps, 1)], y[: max(maps, 1)]
    wanted = loop(model, x, y)
    off = float((parameter_saliency(model, x, y) - wanted).abs().max() / wanted.max())
    for turn in range(rounds):
        best["plain"] = min(best["plain"], timed(plain, device) / images)
        best["saliency"] = min(best["saliency"], timed(lambda: parameter_saliency(model, x, y), device) / images)
        if turn % 2 == 0:
            best["loop"] = min(best["loop"], timed(lambda: loop(model, x, y), device) / images)
            if maps:
                best["maps"] = min(best["maps"], timed(lambda: input_saliency(model, *few, statistics), device) / maps)
    setting = f"{name}, {images} images of {size} x {size}"
    yield Figure(f"forward and backward pass ({setting})", 1e3 * best["plain"], "ms an image")
    yield Figure(f"parameter saliency ({setting})", 1e3 * best["saliency"], "ms an image")
    yield Figure(f"loop over single images ({setting})", 1e3 * best["loop"], "ms an image")
    if maps:
        yield Figure(f"input-space maps ({setting})", 1e3 * best["maps"], "ms an image")
    share = best["saliency"] / best["plain"]
    yield Figure(f"saliency beside plain passes ({setting})", share, "times", "at most 1.5", share <= 1.5)
    times, least = best["loop"] / best["saliency"], 20 if device.type == "cuda" else 3
    yield Figure(f"loop beside saliency ({setting})", times, "times", f"at least {least}", times >= least)
    yield Figure(
        f"largest difference to the loop, of the largest saliency ({setting})", off, "", "at most 1e-6", off <= 1e-6
    )


def loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean absolute gradients of all filters, image by image."""
    filters = [each for each in model.parameters() if each.ndim == 4]
    rows = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image), label), filters)
        rows.append(torch.cat([each.abs().flatten(1).mean(1) for each in gradients]))
    return torch.stack(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50", "vgg19_bn", "densenet121"])
    parser.add_argument("--images", type=int, default=32, help="batch size")
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--maps", type=int, default=0, help="images of the input-space maps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="folder for saliency_speed.csv")
    return parser


if __name__ == "__main__":
    main()
