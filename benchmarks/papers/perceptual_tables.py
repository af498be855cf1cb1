"""The tables of PGAP's paper beside ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.papers.sweeps import Point, curve, rate_at, smallest_fooling

# the levels of mean SSIM and PSNR at which Tables II and III are read; Fashion-MNIST, which is not in them, as MNIST
LEVELS = {
    "mnist": {"ssim": 0.85, "psnr": 25.0},
    "fashion_mnist": {"ssim": 0.85, "psnr": 25.0},
    "cifar10": {"ssim": 0.998, "psnr": 57.0},
    "imagenet": {"ssim": 0.998, "psnr": 65.0},
}
# by quality and image set: the fooling rates of Tables II and III
RATES: dict[str, dict[str, dict[str, float]]] = {
    "ssim": {
        "mnist": {"FGSM": 0.0556, "FGM-L2": 0.3004, "PGD": 0.066, "PGD-L2": 0.1891, "FPGAP": 0.9953},
        "cifar10": {"FGSM": 0.5892, "FGM-L2": 0.5681, "PGD": 0.7612, "PGD-L2": 0.8472, "FPGAP": 1.0},
        "imagenet": {"FGSM": 0.82696, "FGM-L2": 0.79008, "PGD": 0.92332, "PGD-L2": 0.97614, "FPGAP": 1.0},
    },
    "psnr": {
        "mnist": {"FGSM": 0.1592, "FGM-L2": 0.3004, "PGD": 0.2982, "PGD-L2": 0.4867, "FPGAP": 0.9953},
        "cifar10": {"FGSM": 0.2102, "FGM-L2": 0.3099, "PGD": 0.4157, "PGD-L2": 0.3376, "FPGAP": 1.0},
        "imagenet": {"FGSM": 0.4822, "FGM-L2": 0.66434, "PGD": 0.4942, "PGD-L2": 0.74458, "FPGAP": 0.99998},
    },
}
# Table I, ImageNet: budget, precision, pixels, recall, IoU outside
LOCALIZATION = {
    "FGSM": (0.5, 0.1613, 0.9817, 0.9759, 0.8263),
    "FGM-L2": (100, 0.1982, 0.6682, 0.7750, 0.5594),
    "PGD": (0.03, 0.1329, 0.3217, 0.2503, 0.3128),
    "PGD-L2": (5.0, 0.1672, 0.3017, 0.2585, 0.2880),
    "FPGAP": (0.005, 0.3577, 0.0454, 0.0837, 0.0369),
}
_WORDS = {"none": "without rounding", "round": "rounded to 8 bits"}


def markdown(points: Sequence[Point], name: str, rate: float) -> str:
    """Tables I, II and III of one image set, ours above the paper's."""
    attacks = list(dict.fromkeys(point.attack for point in points))
    lines = [*_localization(points, attacks, name, rate)]
    for number, quality in (("II", "ssim"), ("III", "psnr")):
        lines += ["", *_rates(points, attacks, name, number, quality)]
    return "\n".join(lines) + "\n"


def _localization(points: Sequence[Point], attacks: Sequence[str], name: str, rate: float) -> list[str]:
    first = points[0]
    lines = [
        f"Table I: SSIM precision at the smallest budget that fools {rate:.0%}, or where none does, the one that fools "
        f"most ({first.images} images, {100 * first.looked:.1f} % of their pixels inside the class activation):",
        "",
        "| attack (budget) | images | fooled | SSIM | PSNR | precision | pixels | recall | IoU outside |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for attack in attacks:
        for quantise, words in _WORDS.items():
            line = curve(points, attack, quantise)
            budget = smallest_fooling(curve(points, attack, "none"), rate).budget
            point = next(p for p in line if p.budget == budget)
            scores = (point.precision, point.pixels, point.recall, point.iou_outside)
            few = f" ({point.scored} images)" if 0 < point.scored < point.images else ""
            cells = [_number(scores[0]) + few, *map(_number, scores[1:])]
            quality = f"{point.fooling_rate:.3f} | {point.ssim:.4f} | {point.psnr:.1f}"
            lines.append(f"| {attack} ({budget:.3g}) | {words} | {quality} | " + " | ".join(cells) + " |")
        if name == "imagenet" and attack in LOCALIZATION:
            budget, *scores = LOCALIZATION[attack]
            lines.append(f"| {attack} ({budget:g}) | *paper* | ~1 | | | " + " | ".join(map(_number, scores)) + " |")
    return lines


def _rates(points: Sequence[Point], attacks: Sequence[str], name: str, number: str, quality: str) -> list[str]:
    level = LEVELS[name][quality]
    what = f"a mean SSIM of {level:g}" if quality == "ssim" else f"a mean PSNR of {level:g} dB"
    lines = [
        f"Table {number}: fooling rate at {what} ({points[0].images} images):",
        "",
        "| | " + " | ".join(attacks) + " |",
        "|---|" + "---:|" * len(attacks),
    ]
    marked = False
    for quantise, words in _WORDS.items():
        cells = []
        for attack in attacks:
            reading = rate_at(curve(points, attack, quantise), quality, level)
            cells.append("not reached" if math.isnan(reading.rate) else f"{reading.rate:.3f}")
            if reading.unchanged > 0.1:
                cells[-1] += " *"
                marked = True
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    if name in RATES[quality]:
        theirs = RATES[quality][name]
        cells = [f"{theirs[attack]:.3f}" if attack in theirs else "-" for attack in attacks]
        lines.append("| *paper* | " + " | ".join(cells) + " |")
    if marked:
        note = "Read beside a budget at which over a tenth of the images round to the clean ones, counted with 100 dB."
        lines += ["", rf"\* {note}"]
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
