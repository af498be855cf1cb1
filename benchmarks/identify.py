"""What JPEG, resizing, other sizes and unseen attacks do to `REDRL.identify`, on the digits.

    lightning fit --config configs/digits/victims/small_cnn.yaml
    lightning fit --config configs/digits/redrl.yaml --run_dir runs/digits/plain
    lightning fit --config configs/digits/robust.yaml --run_dir runs/digits/robust
    python -m benchmarks.identify --networks plain=runs/digits/plain/checkpoints/best.ckpt
        robust=runs/digits/robust/checkpoints/best.ckpt [--victim runs/digits/small_cnn/checkpoints/best.ckpt]
        [--other_victims 24=CKPT 32=CKPT] [--images 100] [--out docs]

The test images, clean and under each attack that the networks were trained on, go through a degradation and then
through each network: how many are recognised (the most likely class is the right one, whatever its probability), how
many are called unknown, and how many of the others are right. Images of another size are attacked at that size, against
a victim of that size, and judged as they are, as the mean over tiles of the trained size, and resized to it.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_adv import attacks as library
from lit_adv.attacks import APGD, DDN, MIFGSM, Attack, Radius, Square
from lit_adv.compose import compose
from lit_adv.data import AdversarialDataModule, Digits
from lit_adv.data.degradation import compressed, resized
from lit_adv.metrics import calibrated
from lit_adv.tasks import REDRL

ATTACKS = "configs/attacks/redrl_digits.yaml"
EPS = 32 / 255
UNSEEN: dict[str, Attack] = {
    "APGD": APGD(norm="linf", eps=EPS, steps=20),
    "Square": Square(norm="linf", eps=EPS, queries=500),
    "MI-FGSM": MIFGSM(eps=EPS, step_size=4 / 255, steps=20),
    "DDN": DDN(steps=50),
}
SIDE = 16


class Score(NamedTuple):
    """How a network did under one condition; shares of the images.

    Attributes:
        network: Its name.
        condition: What was done to the images.
        images: How many there were.
        recognised: Most likely class right; None for attacks that are no class.
        unknown: Verdict unknown.
        right: Right among those with another verdict.
        verdicts: The verdicts that were given most often, in words.
    """

    network: str
    condition: str
    images: int
    recognised: float | None
    unknown: float
    right: float | None
    verdicts: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints a table and writes ``identify.csv``."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    networks = {name: REDRL.load_from_checkpoint(path) for name, path in map(_named, options.networks)}
    for name, network in networks.items():
        if network.calibration is None:
            raise SystemExit(f"{name}: not calibrated (lightning validate with its config and checkpoint)")
    scores = []
    images, classes, module = crafted(SIDE, options.victim, options.images)
    for condition, change in conditions():
        changed = [change(image) for image in images]
        for name, network in networks.items():
            scores.append(score(name, condition, network, changed, classes))
    for condition, found in unseen(module, options.images):
        for name, network in networks.items():
            scores.append(score(name, condition, network, found, None))
    for side, victim in map(_named, options.other_victims):
        images, classes, _ = crafted(int(side), victim, options.images)
        for name, network in networks.items():
            scores.append(score(name, f"{side} px as they are", network, images, classes))
            scores.append(score(name, f"{side} px in tiles of {SIDE}", network, images, classes, in_tiles))
            small = [resized(image, SIDE / image.shape[-1]) for image in images]
            scores.append(score(name, f"{side} px resized to {SIDE}", network, small, classes))
    show(scores)
    if options.out:
        write(scores, options.out / "identify.csv")


def crafted(side: int, victim: str, count: int | None) -> tuple[list[Tensor], Tensor, AdversarialDataModule]:
    """Test images in every class, 8-bit, and their classes."""
    kinds = {}
    for name, given in compose(ATTACKS).items():
        fields = {
            key: Radius(value) if key.endswith(("eps", "size")) and isinstance(value, str) else value
            for key, value in given["init_args"].items()
        }
        kinds[name] = getattr(library, given["class_path"])(**fields)
    module = AdversarialDataModule(
        Digits(image_size=side, test_limit=count), {"victim": victim}, kinds, batch_size=256, cache_dir="cache"
    )
    batches = list(module.batches("test"))
    return list(torch.cat([b.adversarial for b in batches])), torch.cat([b.attack for b in batches]), module


def unseen(module: AdversarialDataModule, count: int | None) -> Iterator[tuple[str, list[Tensor]]]:
    """Test images under attacks that no network was trained on, those that fool the victim after rounding."""
    victim = module.victim("victim")
    images = torch.cat([images for images, _ in module.clean_batches("test")])
    labels = victim(images).argmax(1)
    for name, attack in UNSEEN.items():
        made = (attack(victim, images, labels, seed=0) * 255).round() / 255
        fools = victim(made).argmax(1) != labels
        yield f"unseen: {name}", list(made[fools])


def conditions() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """What may happen to an image, by name."""
    yield "as crafted", lambda image: image
    for quality in (100, 95, 85, 75, 50):
        yield f"JPEG {quality}", lambda image, quality=quality: compressed(image, quality)  # type: ignore[misc]
    for factor in (0.5, 0.75, 1.25, 2.0):
        yield f"resized x {factor:g}", lambda image, factor=factor: resized(image, factor)  # type: ignore[misc]
    yield "resized x 2, JPEG 75", lambda image: compressed(resized(image, 2.0), 75)
    yield "resized x 2 and back", lambda image: resized(resized(image, 2.0), 0.5)


def in_tiles(network: REDRL, images: Tensor) -> Tensor:
    """Logits, the mean over tiles of the trained size, which overlap where they must."""
    starts = [sorted({*range(0, side - SIDE, SIDE), side - SIDE}) for side in images.shape[-2:]]
    tiles = [images[..., top : top + SIDE, left : left + SIDE] for top in starts[0] for left in starts[1]]
    return torch.stack([network(tile).logits for tile in tiles]).mean(0)


def score(
    name: str,
    condition: str,
    network: REDRL,
    images: Iterable[Tensor],
    classes: Tensor | None,
    logits: Callable[[REDRL, Tensor], Tensor] | None = None,
) -> Score:
    """One network under one condition, on images of one size."""
    batches = torch.stack(list(images)).split(256)
    if logits is None:
        found = [network.identify(batch) for batch in batches]
        verdicts = [verdict for part in found for verdict in part.verdicts]
        likely = [name for part in found for name in part.most_likely]
    else:
        assert network.calibration is not None
        assert network.attack_classes is not None
        network.eval()
        with torch.no_grad():
            values = torch.cat([logits(network, batch) for batch in batches])
        confidence, best = calibrated(values, network.calibration.temperature).max(1)
        likely = [network.attack_classes[index] for index in best.tolist()]
        sure = (confidence >= network.calibration.threshold).tolist()
        verdicts = [name if known else "unknown" for name, known in zip(likely, sure, strict=True)]
    recognised = right = None
    if classes is not None:
        assert network.attack_classes is not None
        wanted = [network.attack_classes[index] for index in classes.tolist()]
        recognised = _share(a == b for a, b in zip(likely, wanted, strict=True))
        answered = [(a, b) for a, b in zip(verdicts, wanted, strict=True) if a != "unknown"]
        right = _share(a == b for a, b in answered)
    common = Counter(verdicts).most_common(3) if classes is None else []
    told = ", ".join(f"{verdict} {100 * count / len(verdicts):.0f} %" for verdict, count in common)
    return Score(name, condition, len(verdicts), recognised, _share(v == "unknown" for v in verdicts) or 0, right, told)


def show(scores: Sequence[Score]) -> None:
    """All scores as a table."""
    table = Table("images", "network", "n", "recognised", "unknown", "right of the others", "verdicts")
    for each in scores:
        shares = (each.recognised, each.unknown, each.right)
        cells = ("" if share is None else f"{100 * share:.1f} %" for share in shares)
        table.add_row(each.condition, each.network, str(each.images), *cells, each.verdicts)
    Console(width=140).print(table)


def write(scores: Sequence[Score], path: Path) -> None:
    """All scores as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Score._fields)
        writer.writerows([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in each] for each in scores)


def _share(flags: Iterable[bool]) -> float | None:
    found = list(flags)
    return sum(found) / len(found) if found else None


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals:
        raise SystemExit(f"{text}: must be NAME=CHECKPOINT")
    return name, path


def _parser() -> argparse.ArgumentParser:
    parser: Any = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME=CHECKPOINT")
    parser.add_argument("--victim", default="runs/digits/small_cnn/checkpoints/best.ckpt")
    parser.add_argument("--other_victims", nargs="*", default=[], metavar="SIDE=CHECKPOINT")
    parser.add_argument("--images", type=int, default=None, help="test images; all of them where it is left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="folder for identify.csv")
    return parser


if __name__ == "__main__":
    main()
