"""Speed of the perceptual attacks: their exact steps beside cvxpy's, and what a step costs beyond its two passes.

    python -m benchmarks.perceptual [--vectors 64] [--solved 4] [--images 8] [--rounds 5] [--out docs]

All in one process with one thread, in processor time, the best of some rounds in which all take turns. On a GPU
(``--device cuda``) the passes are timed there. cvxpy solves a few of the vectors, one after the other, as it does; its
time is that of building and solving the problem with Clarabel at its own tolerances, and again at those at which the
two answers can be compared.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.models import resnet18

from benchmarks.attacks import timed
from benchmarks.report import short
from lit_adv.attacks import FPGAP, PGAP
from lit_adv.attacks.objectives import objective
from lit_adv.attacks.ssim_ball import farthest
from lit_adv.attacks.ssim_cvxpy import farthest_by_cvxpy
from lit_adv.metrics import LocalizationScores


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        name: What was measured.
        value: What came out, in ``unit``.
        unit: Its unit.
        wanted: What it should be, in words; empty where it only explains others.
        kept: Whether it is so.
    """

    name: str
    value: float
    unit: str
    wanted: str = ""
    kept: bool = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes ``perceptual_speed.csv``."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    figures = [
        *against_cvxpy(options.size, options.vectors, options.solved, options.rounds),
        *step_cost(options.images, options.steps, options.rounds, torch.device(options.device)),
        *sweep_cost(options.maps, options.rounds, torch.device(options.device)),
    ]
    show(figures)
    if options.out:
        write(figures, options.out / "perceptual_speed.csv")


def against_cvxpy(size: int, vectors: int, solved: int, rounds: int) -> Iterator[Figure]:
    """Time of a solution and largest difference, exact against cvxpy, with and without box and eps1.

    Args:
        size: Length N of the vectors.
        vectors: How many ours solves in one call.
        solved: How many of them cvxpy solves.
        rounds: Timed calls of ours; the best counts. Of cvxpy half as many.
    """
    x, g = instances(vectors, size)
    for box, factor in ((False, 400), (True, 100)):
        for eps1 in (0.0, 0.05):
            ours = partial(farthest, eps1=eps1, eps2=0.05, box=box)
            solver = partial(farthest_by_cvxpy, x[:solved], g[:solved], eps1=eps1, eps2=0.05, box=box)
            setting = f"{'box' if box else 'no box'}, eps1={eps1:g}, eps2=0.05, N={size}"
            off = float((ours(x, g)[:solved] - solver()).abs().max())
            own, single, theirs, strict = (math.inf,) * 4
            for turn in range(rounds):
                own = min(own, timed(partial(ours, x, g), x.device) / vectors)
                single = min(single, timed(partial(ours, x[:1], g[:1]), x.device))
                if turn % 2 == 0:
                    theirs = min(theirs, timed(partial(solver, tolerance=1e-8), x.device) / solved)
                    strict = min(strict, timed(solver, x.device) / solved)
            yield Figure(f"exact, {vectors} vectors a call ({setting})", 1e3 * own, "ms a vector")
            yield Figure(f"exact, one vector a call ({setting})", 1e3 * single, "ms a vector")
            yield Figure(f"cvxpy, Clarabel's tolerances ({setting})", 1e3 * theirs, "ms a vector")
            yield Figure(f"cvxpy, tolerance 1e-12 ({setting})", 1e3 * strict, "ms a vector")
            ratio = theirs / own
            yield Figure(f"exact beside cvxpy ({setting})", ratio, "times", f"at least {factor}", ratio >= factor)
            yield Figure(f"largest difference ({setting})", off, "grey levels of 1", "at most 1e-5", off <= 1e-5)


def step_cost(images: int, steps: int, rounds: int, device: torch.device) -> Iterator[Figure]:
    """What an attack's call takes beyond as many bare forward and backward passes, on a ResNet-18 at 32 x 32.

    Args:
        images: Batch size.
        steps: Steps of the attack.
        rounds: Timed calls; the best counts.
        device: Where.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # for small images the usual stem: without stride and without pooling
        model = resnet18(num_classes=10)
        model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
        x = torch.rand(images, 3, 32, 32)
    model, x = model.eval().requires_grad_(False).to(device), x.to(device)
    with torch.no_grad():
        labels = model(x).argmax(1)
    follow = objective("f6", confidence=50.0)

    def passes() -> None:
        for _ in range(steps):
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(follow(model(leaf), labels, False).sum(), leaf)

    calls: dict[str, Callable[[], object]] = {"bare passes": passes}
    for kind, box in ((PGAP, False), (FPGAP, False), (PGAP, True)):
        attack = kind(steps=steps, box=box, stop_at_success=False, fold=False)
        calls[f"{kind.__name__}, {'box' if box else 'no box'}"] = partial(attack, model, x, labels)
    best = dict.fromkeys(calls, math.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            best[name] = min(best[name], timed(call, device))
    bare = best.pop("bare passes")
    yield Figure(f"forward and backward pass ({images} images, ResNet-18 at 32 x 32)", 1e3 * bare / steps, "ms")
    for name, taken in best.items():
        more = 100 * (taken / bare - 1)
        wanted = "at most 5" if "no box" in name else ""
        yield Figure(f"a step of {name}, beyond its two passes", more, "%", wanted, not wanted or more <= 5)


def sweep_cost(images: int, rounds: int, device: torch.device) -> Iterator[Figure]:
    """What `LocalizationScores` takes for 40 thresholds and for one, on maps of noise that is spread over all of them.

    Args:
        images: Maps of 32 x 32 a batch; of 224 x 224 a 16th.
        rounds: Timed calls, ten times as many, since they are short; the best counts.
        device: Where.
    """
    generator = torch.Generator().manual_seed(0)
    for side, count in ((32, images), (224, -(-images // 16))):
        ssim = (1 - 0.6 * torch.rand(count, 3, side, side, generator=generator)).to(device)
        cam = torch.rand(count, side, side, generator=generator).to(device)
        best = {}
        metrics = {number: LocalizationScores([step / 100 for step in range(1, number + 1)]) for number in (1, 40)}
        for _ in range(10 * rounds):
            for number, metric in metrics.items():
                taken = timed(partial(metric.to(device).update, ssim, cam), device) / count
                best[number] = min(best.get(number, math.inf), taken)
        for number, taken in best.items():
            name = f"LocalizationScores, {number} threshold{'s' * (number > 1)} ({side} x {side})"
            yield Figure(name, 1e3 * taken, "ms an image")
        ratio = best[40] / best[1]
        yield Figure(f"40 thresholds beside one ({side} x {side})", ratio, "times", "at most 2", ratio <= 2)


def instances(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Image-like vectors, smooth with some pixels at 0 and 1, half black, and uniform; directions with outliers."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    smooth = torch.nn.functional.avg_pool1d(normal(count, 1, size), 9, 1, 4)[:, 0] * 3
    kinds = 0.4 + 0.25 * smooth, -0.9 + 1.1 * normal(count, size), normal(count, size).sigmoid()
    x = torch.stack([kinds[row % 3][row] for row in range(count)]).clamp(0, 1)
    return x, normal(count, size) * normal(count, size).exp() + 0.2 * normal(count, 1)


def show(figures: Sequence[Figure]) -> None:
    table = Table("figure", "", "unit", "wanted")
    for figure in figures:
        mark = "" if not figure.wanted else "[green]yes[/]" if figure.kept else "[red]no[/]"
        value = f"{figure.value:.1e}" if abs(figure.value) < 1e-3 else short(figure.value)
        table.add_row(figure.name, value, figure.unit, f"{figure.wanted} {mark}".strip())
    Console(width=150).print(table)


def write(figures: Sequence[Figure], path: Path) -> None:
    """All figures as CSV, in a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["figure", "value", "unit", "wanted", "kept"])
        for each in figures:
            writer.writerow([each.name, f"{each.value:.4g}", each.unit, each.wanted, each.kept if each.wanted else ""])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=3072, help="length of the vectors")
    parser.add_argument("--vectors", type=int, default=64, help="how many of them ours solves in one call")
    parser.add_argument("--solved", type=int, default=4, help="how many of them cvxpy solves")
    parser.add_argument("--images", type=int, default=8, help="batch size of the attacks")
    parser.add_argument("--steps", type=int, default=5, help="steps of the attacks")
    parser.add_argument("--maps", type=int, default=128, help="batch size of the localisation scores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None, help="folder for perceptual_speed.csv")
    return parser


if __name__ == "__main__":
    main()
