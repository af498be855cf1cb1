"""How robust is a classifier? Every attack on every image, and one table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from lit_adv.attacks import Attack, Region
from lit_adv.attacks.attack import examined, predictions
from lit_adv.files import write_json, write_rows
from lit_adv.metrics import RobustAccuracy, ssim

# column to heading
_SHOWN = {"l2": "L2", "linf": "Linf", "ssim": "SSIM", "queries": "queries", "seconds": "s/img"}
COLUMNS = ("attack", "robust_accuracy", "fooling_rate", *RobustAccuracy.SIZES, *RobustAccuracy.COSTS)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has found; the numbers are those of `RobustAccuracy.compute`.

    Attributes:
        images: How many there were.
        clean_accuracy: Without an attack, in [0, 1]; None where there were no images, as below.
        worst_case_accuracy: Share of the images that no attack fools.
        attacks: By name ``robust_accuracy``, ``fooling_rate``, mean norms and SSIM of the images fooled, and mean
            ``iterations``, ``forwards``, ``backwards``, ``queries`` and ``seconds`` of the images attacked.
    """

    images: int
    clean_accuracy: float | None
    worst_case_accuracy: float | None
    attacks: dict[str, dict[str, float | None]]

    def rows(self) -> list[dict[str, Any]]:
        """One row an attack, between ``clean`` and ``worst case``."""
        clean = {"attack": "clean", "robust_accuracy": self.clean_accuracy}
        worst = {"attack": "worst case", "robust_accuracy": self.worst_case_accuracy}
        return [clean, *({"attack": name, **values} for name, values in self.attacks.items()), worst]

    def table(self) -> Table:
        """For a terminal of 80 columns: accuracies, L2, Linf, SSIM, queries, seconds an image; files have the rest."""
        style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
        table = Table(title=f"Robustness, {self.images:,} images", pad_edge=False, **style)
        table.add_column("attack", no_wrap=True)
        for name in ("accuracy", "fooled", *_SHOWN.values()):
            table.add_column(name, justify="right", no_wrap=True)
        rows = self.rows()
        for number, row in enumerate(rows):
            shares = [_percent(row.get(name)) for name in ("robust_accuracy", "fooling_rate")]
            table.add_row(row["attack"], *shares, *(_number(row.get(name)) for name in _SHOWN))
            if number in (0, len(rows) - 2):
                table.add_section()
        return table

    def save(self, folder: str | Path) -> Path:
        """Writes ``robustness.csv`` and ``robustness.json`` into ``folder`` and returns the path of the first."""
        folder = Path(folder)
        write_rows(folder / "robustness.csv", COLUMNS, self.rows())
        write_json(folder / "robustness.json", vars(self), indent=2)
        return folder / "robustness.csv"


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    attacks: Mapping[str, Attack],
    *,
    regions: Mapping[str, Region] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Clean, robust and worst-case accuracy of a classifier, with norms, SSIM, queries and seconds of each attack.

    Only images that the model classifies rightly are attacked; the others count as not robust. The model is left as it
    was. Whoever runs several processes updates `RobustAccuracy` by `attack_batch`, as the callback `RobustnessTable`
    does.

    Args:
        model: Maps images in [0, 1] to logits.
        loader: Batches (images, labels): ``(B, C, H, W)`` in [0, 1] and ``(B,)`` int64.
        attacks: By any names.
        regions: For some of these names, the only region that the attack may change.
        seed: Of the attacks; an image gets the same random numbers in any batch.
        device: Where to attack; None takes the model's.
        progress: Shows a progress bar.

    Raises:
        ValueError: No attacks, a region for none of them, or batches of another kind.
    """
    check_attacks("evaluate", attacks, regions)
    if device is None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    metric = RobustAccuracy(list(attacks)).to(device)
    # a loader without images is no mistake of the metric's caller
    metric.update(torch.zeros(0, dtype=torch.bool, device=device), _nothing(attacks, device), {})
    total = len(loader) if isinstance(loader, Sized) else None
    with Progress(transient=True, disable=not progress) as bar:
        task = bar.add_task("attacking", total=None if total is None else total * len(attacks))
        for batch in loader:
            images, labels = pair("evaluate", batch)
            metric.update(
                *attack_batch(
                    model,
                    images.to(device),
                    labels.to(device),
                    attacks,
                    regions,
                    seed,
                    after_each=lambda: bar.advance(task),
                )
            )
    return Evaluation(**metric.compute())


def attack_batch(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack],
    regions: Mapping[str, Region] | None = None,
    seed: int = 0,
    after_each: Any = None,
) -> tuple[Tensor, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """All attacks on one batch, as `RobustAccuracy.update` takes it."""
    right = predictions(model, images) == labels
    images, labels = images[right], labels[right]
    fooled, measures = {}, {}
    for name, attack in attacks.items():
        _wait(images.device)
        began = time.perf_counter()
        result = attack.run(model, images, labels, region=(regions or {}).get(name), seed=seed)
        _wait(images.device)
        seconds = (time.perf_counter() - began) / max(1, len(images))
        fooled[name] = result.success
        measures[name] = {
            **result.norms,
            "ssim": ssim(images, result.images),
            "iterations": result.iterations,
            "forwards": result.forwards,
            "backwards": result.backwards,
            "queries": result.queries,
            "seconds": torch.full_like(labels, seconds, dtype=torch.float64),
        }
        if after_each is not None:
            after_each()
    return right, fooled, measures


def check_attacks(owner: str, attacks: Mapping[str, Attack], regions: Mapping[str, Region] | None) -> None:
    """Raises ValueError unless there are attacks, by name, and regions for none but them."""
    wrong = [name for name, attack in attacks.items() if not isinstance(attack, Attack)]
    if not attacks or wrong:
        got = "none" if not attacks else f"{wrong[0]}: {type(attacks[wrong[0]]).__name__}"
        raise ValueError(f"{owner}: attacks must be at least one attack by name, got {got}")
    unknown = sorted(set(regions or {}) - set(attacks))
    if unknown:
        raise ValueError(f"{owner}: regions must be for attacks ({', '.join(attacks)}), got one for {unknown[0]}")


def pair(owner: str, batch: Any) -> tuple[Tensor, Tensor]:
    """Images, floats of 8-bit ones, and labels of a batch; ValueError for anything else."""
    if not isinstance(batch, list | tuple) or len(batch) != 2 or not all(isinstance(each, Tensor) for each in batch):
        raise ValueError(f"{owner}: batches must be (images, labels), got {type(batch).__name__}")
    images, labels = batch
    return images.float() / 255 if images.dtype == torch.uint8 else images, labels


def check_comparable(owner: str, field: str, other: nn.Module, model: nn.Module, images: Tensor) -> None:
    """Refuses a network that is to stand beside another one, but takes other images or has other classes.

    Args:
        owner: Who asks; opens the error message.
        field: Where the network was given.
        other: That network.
        model: The one that is tested.
        images: ``(B, C, H, W)`` in [0, 1]; without one nothing can be told.

    Raises:
        ValueError: They do not fit.
    """
    if not len(images):
        return
    remedy = "(train it on the data that are tested, or leave it out)"
    try:
        classes = _classes(other, images[:1])
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{owner}: {field} must take images {tuple(images.shape[1:])}: {reason} {remedy}") from error
    expected = _classes(model, images[:1])
    if classes != expected:
        raise ValueError(
            f"{owner}: {field} must have the {expected} classes of the network that is tested, got {classes} {remedy}"
        )


def _classes(model: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), examined(model, images, images.new_zeros(len(images), dtype=torch.long)) as problem:
        return problem.logits(problem.x).shape[1]


def _nothing(attacks: Iterable[str], device: torch.device | str) -> dict[str, Tensor]:
    return {name: torch.zeros(0, dtype=torch.bool, device=device) for name in attacks}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if 0 < abs(value) < 0.01:
        return f"{value:.4f}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
