"""Tables I to III and figures of PGAP's paper (S000), on images and networks of one's own.

    python -m benchmarks.papers.perceptual --set cifar10 --data data --weights resnet20.pth --out runs/perceptual

Every attack is swept over its budget; fooling rates are read at the paper's levels of mean SSIM and PSNR, without
rounding and with images rounded to 8 bits. Attacks take the clean prediction as label and, where they iterate, stop
with the first iterate that succeeds, as the paper's loop does. The points are kept in ``points.csv`` of the folder: a
second call computes only what is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from benchmarks.papers.perceptual_figures import Subject, draw
from benchmarks.papers.perceptual_tables import LEVELS, markdown
from benchmarks.papers.sweeps import Point, next_budget, read, write
from lit_adv.attacks import FGM, FGSM, FPGAP, PGAP, PGD, Attack
from lit_adv.attacks.attack import predictions
from lit_adv.data import CIFAR10, MNIST, Arrays, FashionMNIST
from lit_adv.data.datasets import read_image, to_square
from lit_adv.data.folder import EXTENSIONS
from lit_adv.explain import grad_cam_plus_plus
from lit_adv.metrics import FoolingRate, LocalizationScores, MeanPSNR, ssim_map
from lit_adv.models import Classifier, load_classifier
from lit_adv.models.frozen import fingerprint, freeze_

THRESHOLD = 0.11
QUANTISE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "round": lambda images: (images * 255).round() / 255,
}


@dataclass(frozen=True)
class Family:
    """An attack without its budget.

    Attributes:
        unit: What the budget is.
        make: The attack of a budget, most steps, and whether it stops at success.
        start: First budget of a sweep; times ``sqrt(C H W / 3072)`` where `scaled`.
        largest: Largest budget, likewise.
        scaled: Whether the budget is an L2 norm, which grows with the image.
        iterates: Whether it takes more than one step.
    """

    unit: str
    make: Callable[[float, int, bool], Attack]
    start: float
    largest: float
    scaled: bool = False
    iterates: bool = True


def _pgd(norm: str) -> Callable[[float, int, bool], Attack]:
    # from the image itself: a random start would spoil the images that take one step
    return lambda eps, steps, stop: PGD(
        norm=norm,  # type: ignore[arg-type]
        eps=eps,
        step_size=min(2.5 / steps, 1) * eps,
        steps=steps,
        random_start=False,
        stop_at_success=stop,
        fold=False,
    )


def _ssim_steps(kind: type[PGAP] | type[FPGAP]) -> Callable[[float, int, bool], Attack]:
    return lambda eps2, steps, stop: kind(eps2=eps2, steps=steps, stop_at_success=stop, fold=False)


FAMILIES = {
    "FGSM": Family("eps (Linf)", lambda eps, steps, stop: FGSM(eps=eps), 0.008, 0.5, iterates=False),
    "FGM-L2": Family("eps (L2)", lambda eps, steps, stop: FGM(eps=eps), 0.5, 25.0, scaled=True, iterates=False),
    "PGD": Family("eps (Linf)", _pgd("linf"), 0.008, 0.5),
    "PGD-L2": Family("eps (L2)", _pgd("l2"), 0.5, 25.0, scaled=True),
    "PGAP": Family("eps2", _ssim_steps(PGAP), 0.008, 0.9),
    "FPGAP": Family("eps2", _ssim_steps(FPGAP), 0.008, 0.9),
}


@dataclass(frozen=True)
class Setting:
    """What is the same for all attacks.

    Attributes:
        name: Name of the image set.
        network: Name of the network.
        model: The network, frozen.
        images: ``(N, C, H, W)`` in [0, 1].
        labels: ``(N,)``, the clean predictions.
        cams: ``(N, H, W)``, the class activation maps of the clean images.
        steps: Most steps of the iterative attacks.
        stop: Whether they stop at success.
        batch: Images a call.
    """

    name: str
    network: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    cams: Tensor
    steps: int
    stop: bool
    batch: int

    @classmethod
    def of(
        cls, name: str, network: str, model: nn.Module, images: Tensor, steps: int, stop: bool = True, batch: int = 50
    ) -> Setting:
        """With predictions and activation maps computed."""
        parts = images.split(batch)
        labels = torch.cat([predictions(model, part) for part in parts])
        cams = torch.cat([grad_cam_plus_plus(model, part) for part in parts])
        return cls(name, network, model, images, labels, cams, steps, stop, batch)

    def key(self, attack: Attack) -> str:
        """Stands for all that decides an attack's figures."""
        pixels = hashlib.sha256(self.images.contiguous().numpy().tobytes()).hexdigest()
        text = f"1 {attack.fingerprint()} {fingerprint(self.model)} {pixels} {tuple(self.images.shape)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweeps, and writes ``points.csv``, ``tables.md`` and the figures."""
    options = _parser().parse_args(arguments)
    images = load_images(options.set, options.data, options.images)
    model = load_network(options.set, options.weights, options.network, images, options.padding)
    network = options.network or NETWORKS[options.set]
    setting = Setting.of(options.set, network, model, images, options.steps, not options.keep_going, options.batch)
    console = Console(width=150)
    console.print(
        f"{len(images)} images of {tuple(images.shape[1:])}, {network}, {len(set(setting.labels.tolist()))} "
        "classes predicted"
    )
    path = options.out / "points.csv"
    points: list[Point] = []
    for attack in options.attacks:
        for found in sweep(attack, setting, path, options.points, options.rate):
            points.append(found)
            if found.quantise == "none":
                console.print(
                    f"{attack:7} {FAMILIES[attack].unit} {found.budget:.4g}: fooled {found.fooling_rate:.3f}, SSIM "
                    f"{found.ssim:.4f}, PSNR {found.psnr:.2f} dB, {found.forwards:.1f} passes"
                )
        (options.out / "tables.md").write_text(markdown(points, options.set, options.rate))
    if not options.no_figures:
        subject = Subject(setting.name, model, images, setting.labels, options.steps, setting.stop)
        units = {name: family.unit for name, family in FAMILIES.items()}
        iterative = [name for name, family in FAMILIES.items() if family.iterates]
        for name, figure in draw(points, subject, units, iterative, make):
            figure.savefig(options.out / f"{name}.png")
            console.print(f"wrote {name}.png")


def make(attack: str, budget: float, steps: int, stop: bool) -> Attack:
    """The attack of that name in `FAMILIES`."""
    return FAMILIES[attack].make(budget, steps, stop)


def sweep(attack: str, setting: Setting, path: Path, most: int, rate: float) -> Iterator[Point]:
    """Measures an attack at budget after budget, two points each; what the file has already is taken from there.

    Args:
        attack: One of `FAMILIES`.
        setting: Images and network.
        path: File of the points, which gets the new ones at once.
        most: Most budgets, see `next_budget`.
        rate: Fooling rate to be reached.
    """
    family = FAMILIES[attack]
    scale = math.sqrt(setting.images[0].numel() / 3072) if family.scaled else 1.0
    start, largest = (_short(budget * scale) for budget in (family.start, family.largest))
    known: dict[str, list[Point]] = {}
    for point in read(path):
        known.setdefault(point.key, []).append(point)
    points: list[Point] = []
    while True:
        budget = next_budget(points, start, largest, LEVELS[setting.name], rate, most)
        if budget is None:
            return
        budget = _short(budget)
        made = family.make(budget, setting.steps, setting.stop)
        found = known.get(setting.key(made), [])
        if {point.quantise for point in found} != set(QUANTISE):
            found = list(measure(attack, budget, made, setting))
            write(path, [*read(path), *found])
        points += found
        yield from found


def measure(name: str, budget: float, attack: Attack, setting: Setting) -> Iterator[Point]:
    """One attack on all images: a point without and one with rounding."""
    rates, ratios, scores = (
        {quantise: metric() for quantise in QUANTISE}
        for metric in (FoolingRate, MeanPSNR, lambda: LocalizationScores((THRESHOLD,)))
    )
    similar = dict.fromkeys(QUANTISE, 0.0)
    passes = 0
    for rows in torch.arange(len(setting.images)).split(setting.batch):
        x, labels, cams = setting.images[rows], setting.labels[rows], setting.cams[rows]
        result = attack.run(setting.model, x, labels)
        passes += int(result.forwards.sum())
        for quantise, rounded in QUANTISE.items():
            images = rounded(result.images)
            similarity = ssim_map(x, images)
            rates[quantise].update(labels, predictions(setting.model, images))
            ratios[quantise].update(x, images)
            scores[quantise].update(similarity, cams)
            similar[quantise] += float(_inner(similarity).double().mean((1, 2, 3)).sum())
    total = len(setting.images)
    for quantise in QUANTISE:
        ratio, local = ratios[quantise].compute(), scores[quantise].compute()
        yield Point(
            key=setting.key(attack),
            set=setting.name,
            network=setting.network,
            images=total,
            steps=setting.steps,
            stopped=setting.stop,
            attack=name,
            budget=budget,
            quantise=quantise,
            fooling_rate=float(rates[quantise].compute()),
            ssim=similar[quantise] / total,
            psnr=float(ratio["psnr"]),
            identical=int(ratio["identical"]),
            precision=float(local["precision"]),
            pixels=float(local["pixels"]),
            recall=float(local["recall"]),
            iou_outside=float(local["iou_outside"]),
            scored=int(local["counts"]["precision"]),
            looked=float((setting.cams > 0.75).double().mean()),
            forwards=passes / total,
        )


def load_images(name: str, path: Path, count: int) -> Tensor:
    """Images ``(N, C, H, W)`` in [0, 1]: as many of each class as can be, from a test set.

    Args:
        name: ``imagenet``, ``cifar10``, ``fashion_mnist`` or ``mnist``.
        path: The set's folder as torchvision lays it out, or an ``.npz`` file (see `Arrays`); for ImageNet a folder of
            image files, of which every so many-th is taken.
        count: N.
    """
    if name == "imagenet":
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
        if len(files) < count:
            raise ValueError(f"--data must hold at least {count} images, got {len(files)} in '{path}'")
        chosen = [files[i * len(files) // count] for i in range(count)]
        return torch.cat([to_square(read_image(file)[None], 224, 32) for file in chosen]).float() / 255
    if path.suffix == ".npz":
        module = Arrays(str(path), test_limit=count)
    else:
        module = {"cifar10": CIFAR10, "fashion_mnist": FashionMNIST, "mnist": MNIST}[name](
            root=str(path), test_limit=count
        )
    module.setup("test")
    return module.test_dataset.batch(range(count))[0]


def load_network(name: str, weights: Path, network: str | None, images: Tensor, padding: str) -> nn.Module:
    """The network in eval mode, its normalisation inside.

    Args:
        name: The image set.
        weights: A checkpoint or file of `save_classifier`, which says what it is, or a plain state_dict.
        network: Architecture of a plain state_dict; None takes `NETWORKS`.
        images: For their shape.
        padding: ``torch``, or ``same`` for networks trained with TensorFlow's padding.
    """
    try:
        model = load_classifier(weights)
    except ValueError:
        classes = 1000 if name == "imagenet" else 10
        model = Classifier(network or NETWORKS[name], classes, images.shape[-1], images.shape[1], weights=weights)
    if padding == "same":
        pad_as_tensorflow(model)
    return freeze_(model)


NETWORKS = {"imagenet": "mobilenet_v2", "cifar10": "resnet20", "fashion_mnist": "small_cnn", "mnist": "small_cnn"}


def pad_as_tensorflow(model: nn.Module) -> None:
    """Gives 3 x 3 convolutions of stride 2 the "SAME" padding of TensorFlow for even sizes: one row more behind."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size == (3, 3):
            module.padding = (0, 0)
            module.register_forward_pre_hook(_pad)


def _pad(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return F.pad(inputs[0], (0, 1, 0, 1))


def _short(budget: float) -> float:
    """As it stands in the file, so that a second call asks for the same budgets."""
    return float(f"{budget:.6g}")


def _inner(similarity: Tensor, border: int = 5) -> Tensor:
    """The part of an SSIM map that `ssim` takes the mean of, so that the map is computed once."""
    small = min(similarity.shape[-2:]) <= 2 * border
    return similarity if small else similarity[..., border:-border, border:-border]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(NETWORKS), required=True)
    parser.add_argument("--data", type=Path, required=True, help="the images, see load_images")
    parser.add_argument("--weights", type=Path, required=True, help="file of the network")
    parser.add_argument("--network", default=None, help="architecture, where the file does not say it")
    parser.add_argument("--padding", choices=["torch", "same"], default="torch")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=50, help="most steps of the iterative attacks")
    parser.add_argument("--keep_going", action="store_true", help="do not stop at success")
    parser.add_argument("--points", type=int, default=12, help="most budgets an attack")
    parser.add_argument("--rate", type=float, default=0.99, help="fooling rate of Table I and Fig. 4")
    parser.add_argument("--attacks", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--no_figures", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
