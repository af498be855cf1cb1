"""Does each attack perturb what the classifier looks at? Table, curves and pictures at the end of a test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import rich
import torch
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lit_adv.attacks import Attack
from lit_adv.attacks.attack import predictions
from lit_adv.evaluation import check_attacks
from lit_adv.explain import grad_cam, grad_cam_plus_plus
from lit_adv.files import write_json, write_rows
from lit_adv.metrics import FoolingRate, LocalizationScores, MeanPSNR, MeanSSIM, ssim_map
from lit_adv.plots import Localization, localization_figure, threshold_figure

from .figures import log_figure
from .loggers import log_numbers, log_table
from .repeats import fresh_pair
from .results_table import setting_name
from .shown_images import gathered
from .tables import print_path


class SSIMPrecision(pl.Callback):
    """Scores the noise maps of all attacks against the classifier's activation maps, with SSIM, PSNR and fooling rate.

    With an AdversarialDataModule, every attack of it is scored on every victim; with any other data, whose batches are
    (images, labels), `attacks` are run on the task itself, whose ``forward`` must give logits, and leave its
    prediction. The activation map is the victim's, of the clean image and of the class predicted for it; all images
    count, and an image is fooled where the prediction changes. See `LocalizationScores` for the scores.

    Writes ``ssim_precision.csv``, the table at one noise threshold, ``ssim_precision.json``, the curves over all of
    them, and two figures for each victim, ``figures/ssim_precision.png`` with the curves and ``figures/ssim_maps.png``
    with the SSIM and activation maps of one image; prints the table and logs it as
    ``ssim_precision/<attack>/<score>``. Several processes give the numbers of one.

    Args:
        attacks: By any names, where there is no AdversarialDataModule; None takes those of the data module.
        threshold: Noise threshold of the table; one of `thresholds`.
        thresholds: Noise thresholds of the curves, ascending; None takes 0.01, 0.02, ..., 0.5.
        cam_threshold: Of the class activation.
        channel: How the channels' noise is combined, see `LocalizationScores`.
        undefined: Whether undefined scores are left out or count as 0.
        window: Of the SSIM map.
        cam: Which activation map.
        layer: Name of the layer that is activated; None takes the last maps; see `grad_cam`.
        example: The image in the figure: its position in the test set, or, where batches are (images, labels), in the
            first batch of the main process.
        seed: Of `attacks`.

    Raises:
        ValueError: An argument is out of range; in the test, data and `attacks` that do not fit.
    """

    COLUMNS = (
        "attack",
        "victim",
        "images",
        "precision",
        "pixels",
        "recall",
        "iou",
        "iou_outside",
        "ssim",
        "psnr",
        "identical",
        "fooling_rate",
    )

    def __init__(
        self,
        attacks: dict[str, Attack] | None = None,
        threshold: float = 0.11,
        thresholds: Sequence[float] | None = None,
        cam_threshold: float = 0.75,
        channel: Literal["mean", "any", "each"] = "mean",
        undefined: Literal["skip", "zero"] = "skip",
        window: Literal["gaussian", "block8"] = "gaussian",
        cam: Literal["grad_cam_plus_plus", "grad_cam"] = "grad_cam_plus_plus",
        layer: str | None = None,
        example: int = 0,
        seed: int = 0,
    ) -> None:
        if attacks is not None:
            check_attacks("SSIMPrecision", attacks, None)
        # of the same arguments as the metrics, which check them
        grid = LocalizationScores(thresholds, cam_threshold, channel, undefined).thresholds
        MeanSSIM(window)
        if threshold not in grid:
            raise ValueError(f"SSIMPrecision: threshold must be one of thresholds, got {threshold} and {list(grid)}")
        if cam not in _CAMS:
            raise ValueError(f"SSIMPrecision: cam must be one of {', '.join(_CAMS)}, got {cam!r}")
        if example < 0:
            raise ValueError(f"SSIMPrecision: example must be >= 0, got {example} (the position of an image)")
        self.attacks = attacks
        self.threshold = threshold
        self.thresholds = grid
        self.cam_threshold = cam_threshold
        self.channel = channel
        self.undefined = undefined
        self.window = window
        self.cam = cam
        self.layer = layer
        self.example = example
        self.seed = seed
        self.results: list[dict[str, Any]] = []
        self._meters: dict[tuple[str, str], _Meter] = {}
        self._examples: dict[tuple[str, str], Localization] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        crafted = hasattr(data, "attack_classes")
        if crafted == (self.attacks is not None):
            remedy = "leave attacks out to score those of the data module" if crafted else "name them under attacks"
            raise ValueError(
                f"SSIMPrecision: attacks must come either from an AdversarialDataModule or as an argument, got "
                f"{'both' if crafted else 'neither'} ({remedy})"
            )
        self.results = []
        self._examples = {}
        names = [(key, "") for key in self.attacks or ()]
        if crafted:
            keys = [setting_name(name, key) for name in data.attack_classes[1:] for key in data.settings[name]]
            names = [(key, victim) for victim in data.victim_names for key in keys]
        # all of them on every process, since their results are put together by all
        self._meters = {name: _Meter.new(self, pl_module.device) for name in names}

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.attacks is not None:
            first = batch_idx == 0 and trainer.is_global_zero
            owner = f"SSIMPrecision with {type(pl_module).__name__}"
            images, _ = fresh_pair(owner, trainer, batch, batch_idx, dataloader_idx)
            self._attack(pl_module, images, first)
        else:
            self._score(trainer, pl_module, batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = [
            {"attack": attack, "victim": victim, **meter.compute()} for (attack, victim), meter in self._meters.items()
        ]
        # which process has the image depends on the attack
        self._examples = {name: shown for each in gathered(self._examples) for name, shown in each.items()}
        shares: dict[str, float] = {}
        for row in self._table():
            name = "/".join(part for part in ("ssim_precision", row["victim"] * self._several, row["attack"]) if part)
            shares |= {f"{name}/{column}": row[column] for column in self.COLUMNS[3:] if row[column] is not None}
        # already of all processes
        log_numbers(trainer, shares)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero or not self.results:
            return
        self._save(Path(trainer.default_root_dir))
        for victim in dict.fromkeys(row["victim"] for row in self.results):
            mine = {row["attack"]: row for row in self.results if row["victim"] == victim}
            suffix, where = (f"_{victim}", victim) if self._several else ("", victim or type(pl_module).__name__)
            images = max(row["images"] for row in mine.values())
            title = f"SSIM precision: {where}, {images:,} images"
            curves = {attack: row["curves"] for attack, row in mine.items()}
            figure = threshold_figure(self.thresholds, curves, self.threshold, title)
            log_figure(trainer, f"ssim_precision{suffix}", figure)
            shown = {attack: self._examples[attack, victim] for attack in mine if (attack, victim) in self._examples}
            if shown and {len(each.adversarial) for each in shown.values()} <= {1, 3}:
                title = f"SSIM and class activation: {where}, image {self.example}"
                log_figure(trainer, f"ssim_maps{suffix}", localization_figure(shown, title))
        log_table(trainer, "ssim_precision", self.COLUMNS, self._table())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # only now, since Lightning prints its own table after on_test_end and the bar is live until here
        if stage != "test" or not self.results or not trainer.is_global_zero:
            return
        console = rich.get_console()
        console.print(self._printed())
        path = Path(trainer.default_root_dir).absolute() / "ssim_precision.csv"
        print_path(console, "SSIM precision", path)

    @property
    def _several(self) -> bool:
        return len({victim for _, victim in self._meters}) > 1

    def _attack(self, model: nn.Module, images: Tensor, first: bool) -> None:
        """Runs the attacks on the images."""
        assert self.attacks is not None
        # the map before the attacks, since it may find no layer
        before, cam = self._look(model, images)
        row = self.example if first and self.example < len(images) else None
        for key, attack in self.attacks.items():
            crafted = attack(model, images, before, seed=self.seed)
            self._measure((key, ""), model, images, crafted, before, cam, row)

    def _score(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Scores the adversarial images of an AdversarialBatch, grouped by variant."""
        if not hasattr(batch, "adversarial"):
            raise ValueError(f"SSIMPrecision: batches must be of the AdversarialDataModule, got {type(batch).__name__}")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        variants = torch.stack([batch.attack, batch.setting, batch.victim], 1)
        for attack, setting, victim in {tuple(row) for row in variants.tolist() if row[0]}:
            rows = (variants == variants.new_tensor([attack, setting, victim])).all(1)
            shown = (batch.index[rows] == self.example).nonzero()[:, 0].tolist()
            kind, name = data.attack_classes[attack], data.victim_names[victim]
            key = setting_name(kind, data.settings[kind][setting]), name
            model = data.victim(name, pl_module.device)
            clean, adversarial = batch.clean[rows], batch.adversarial[rows]
            self._measure(key, model, clean, adversarial, *self._look(model, clean), shown[0] if shown else None)

    def _look(self, model: nn.Module, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions of clean images and the activation maps of these."""
        before = predictions(model, clean)
        return before, _CAMS[self.cam](model, clean, before, layer=self.layer)

    def _measure(
        self,
        name: tuple[str, str],
        model: nn.Module,
        clean: Tensor,
        adversarial: Tensor,
        before: Tensor,
        cam: Tensor,
        example: int | None,
    ) -> None:
        after = predictions(model, adversarial)
        maps = ssim_map(clean, adversarial, self.window)
        meter = self._meters[name]
        meter.scores.update(maps, cam)
        meter.ssim.update(clean, adversarial)
        meter.psnr.update(clean, adversarial)
        meter.fooling.update(before, after)
        if example is not None:
            image, map_, activation = (each[example].float().cpu().clone() for each in (adversarial, maps, cam))
            caption = f"class {int(before[example])} → {int(after[example])}"
            self._examples[name] = Localization(image, map_, activation, caption)

    def _table(self) -> list[dict[str, Any]]:
        """Rows of `COLUMNS`, the scores at the one threshold."""
        place = self.thresholds.index(self.threshold)
        scores = LocalizationScores.SCORES
        return [{**row, **{name: row["curves"][name][place] for name in scores}} for row in self.results]

    def _save(self, folder: Path) -> None:
        rows = [{name: row[name] for name in self.COLUMNS} for row in self._table()]
        write_rows(folder / "ssim_precision.csv", self.COLUMNS, rows)
        settings = ("threshold", "thresholds", "cam_threshold", "channel", "undefined", "window", "cam", "layer")
        content = {**{name: getattr(self, name) for name in settings}, "attacks": self.results}
        write_json(folder / "ssim_precision.json", content, indent=1)

    def _printed(self) -> Table:
        title = f"SSIM precision at noise > {self.threshold:g}, activation > {self.cam_threshold:g}"
        style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD}
        table = Table(title=title, min_width=len(title), pad_edge=False, padding=(0, 1, 0, 0), **style)
        table.add_column("attack", overflow="fold")
        for heading in _SHOWN.values():
            table.add_column(heading, justify="right", no_wrap=True)
        victims = list(dict.fromkeys(row["victim"] for row in self.results))
        for victim in victims:
            if self._several:
                table.add_row(Text(victim, style="bold"))
            for row in self._table():
                if row["victim"] == victim:
                    table.add_row(row["attack"], *(_number(row[name]) for name in _SHOWN))
            table.add_section()
        return table


class _Meter(NamedTuple):
    """The metrics of one attack on one victim."""

    scores: LocalizationScores
    ssim: MeanSSIM
    psnr: MeanPSNR
    fooling: FoolingRate

    @classmethod
    def new(cls, callback: SSIMPrecision, device: torch.device) -> _Meter:
        """Metrics that have seen nothing."""
        scores = LocalizationScores(callback.thresholds, callback.cam_threshold, callback.channel, callback.undefined)
        made = cls(
            scores.to(device), MeanSSIM(callback.window).to(device), MeanPSNR().to(device), FoolingRate().to(device)
        )
        # a process may get no image of this attack
        images, classes = torch.zeros(0, 1, 1, 1, device=device), torch.zeros(0, dtype=torch.long, device=device)
        made.scores.update(images, images[:, 0])
        made.ssim.update(images, images)
        made.psnr.update(images, images)
        made.fooling.update(classes, classes)
        return made

    def compute(self) -> dict[str, Any]:
        """Plain numbers, None for nan; collective."""
        curves, ratio = self.scores.compute(), self.psnr.compute()
        return {
            "images": int(ratio["images"]),
            "ssim": _plain(self.ssim.compute()),
            "psnr": _plain(ratio["psnr"]),
            "identical": int(ratio["identical"]),
            "fooling_rate": _plain(self.fooling.compute()),
            # torchmetrics makes a number of a curve with one threshold
            "curves": {name: _plain(curves[name].reshape(-1)) for name in LocalizationScores.SCORES},
            "counts": {name: counts.reshape(-1).tolist() for name, counts in curves["counts"].items()},
        }


# column to heading, in 80 columns of a terminal
_SHOWN = {
    "precision": "prec.",
    "pixels": "pixels",
    "recall": "recall",
    "iou": "IoU",
    "iou_outside": "outside",
    "ssim": "SSIM",
    "psnr": "PSNR",
    "fooling_rate": "fooled",
}
_CAMS = {"grad_cam_plus_plus": grad_cam_plus_plus, "grad_cam": grad_cam}


def _plain(values: Tensor) -> Any:
    """Numbers, or lists of them, with None for nan."""
    found = values.tolist()
    if isinstance(found, list):
        return [None if math.isnan(value) else value for value in found]
    return None if math.isnan(found) else found


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value > 1 else f"{value:.3f}"
