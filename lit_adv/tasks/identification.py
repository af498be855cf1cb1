"""What happened to an image: which attack, how sure, and what it added; or that nothing can be said."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lit_adv.files import replacing
from lit_adv.metrics import AnsweredAccuracy, Calibration, LogitCalibration, calibrated
from lit_adv.models import Attribution
from lit_adv.tasks.attribution import grey_levels

UNKNOWN = "unknown"
"""The verdict below the threshold."""
NOT_CALIBRATED = (
    "this checkpoint is not calibrated: probabilities are those of temperature 1, and nothing is called unknown "
    "(lightning validate with the run's config and this checkpoint writes a calibrated one beside it)"
)
# pixels in one pass: G keeps some maps of 64 channels, 64 MiB each at this size
_PIXELS = 512 * 512
_GRID = 32  # the strides of Psi's deepest trunk, multiplied


@dataclass(frozen=True, kw_only=True)
class Identification:
    """What REDRL says of B images.

    Attributes:
        classes: Names of the A attack classes, ``clean`` among them.
        probabilities: ``(B, A)`` float32, calibrated where there is a calibration.
        verdicts: B names: the most likely class, or ``unknown`` where its probability is below the calibration's
            threshold.
        most_likely: B names, whatever the probability.
        residual_energy: ``(B,)`` float32, the mean square of the residual over channels and pixels of images in
            [0, 1]; None for a network that sees the image alone (``inputs="image"``), as the next two.
        reconstructed: ``(B, C, H, W)`` float32 in [0, 1], the estimate of the clean images.
        residual: ``(B, C, H, W)`` float32 in [-1, 1], image minus reconstruction.
        calibration: Temperature, threshold and coverage; None where the checkpoint has none: then the temperature is 1
            and no verdict is ``unknown``.
        victims: Names of the V networks that the ``victim`` head tells apart; None without that head, as the next two.
        victim_probabilities: ``(B, V)`` float32, not calibrated.
        attacked: B names: the network that the image was most likely made against; None where ``clean`` is most likely.
        budgets: ``(B,)`` float32 in [0, 1], the Linf radius that the most likely attack was given; nan where that has
            none; None without a ``budget`` head.
    """

    classes: tuple[str, ...]
    probabilities: Tensor
    verdicts: tuple[str, ...]
    most_likely: tuple[str, ...]
    residual_energy: Tensor | None
    reconstructed: Tensor | None
    residual: Tensor | None
    calibration: Calibration | None
    victims: tuple[str, ...] | None = None
    victim_probabilities: Tensor | None = None
    attacked: tuple[str | None, ...] | None = None
    budgets: Tensor | None = None

    def __repr__(self) -> str:
        confidences = self.probabilities.amax(1).tolist() if len(self.verdicts) else []
        each = zip(self.verdicts, self.most_likely, confidences, strict=True)
        told = [f"{v}: {m} {100 * c:.0f} %" if v == UNKNOWN else f"{v} {100 * c:.0f} %" for v, m, c in each]
        for row, name in enumerate(self.attacked or ()):
            told[row] += "" if name is None else f" on {name}"
        for row, budget in enumerate(() if self.budgets is None else self.budgets.tolist()):
            told[row] += "" if math.isnan(budget) else f", {255 * budget:.1f}/255"
        return f"Identification({'; '.join(told)}{'' if self.calibration else '; not calibrated'})"


def identify(task: Any, images: Tensor) -> Identification:
    """What `REDRL.identify` does, without its warning.

    An image of up to 512 x 512 pixels goes through at its own size: all layers are convolutions under one global mean,
    and resizing would destroy what an attack has left. Of a larger one G sees tiles with as many pixels around them as
    reach its output, so that the reconstruction is that of the whole image; Psi's features of the tiles are averaged.

    Args:
        task: A REDRL, trained.
        images: ``(B, C, H, W)`` in [0, 1], on any device; the results come back there.

    Raises:
        ValueError: Images of another kind, or a network that needs the clean images as well.
    """
    _check(task, images)
    task.configure_model()
    height, width = images.shape[-2:]
    with torch.no_grad(), _evaluating(task):
        if height * width <= _PIXELS:
            pieces = images.split(max(1, _PIXELS // (height * width)))
            parts = [_results(piece, _whole(task, piece)) for piece in pieces]
        else:
            parts = [_results(image, _tiled(task, image)) for image in images.split(1)]
    logits, made, named, budgets = (
        None if found[0] is None else torch.cat(found) for found in zip(*parts, strict=True)
    )
    residual = None if made is None else images.float() - made
    assert logits is not None
    calibration: Calibration | None = task.calibration
    probabilities = calibrated(logits, calibration.temperature if calibration else 1.0)
    confidence, best = probabilities.max(1)
    classes = tuple(task.attack_classes)
    most_likely = tuple(classes[index] for index in best.tolist())
    victims = None if named is None else _victims(task, named.shape[1])
    attacked: list[str | None] | None = None
    if named is not None and victims is not None:
        # clean images were made against nobody
        pairs = zip(best.tolist(), named.argmax(1).tolist(), strict=True)
        attacked = [victims[victim] if attack else None for attack, victim in pairs]
    sure = (confidence >= (calibration.threshold if calibration else 0.0)).tolist()
    return Identification(
        classes=classes,
        probabilities=probabilities.float(),
        verdicts=tuple(name if known else UNKNOWN for name, known in zip(most_likely, sure, strict=True)),
        most_likely=most_likely,
        residual_energy=None if residual is None else residual.square().flatten(1).mean(1),
        reconstructed=made,
        residual=residual,
        calibration=calibration,
        victims=victims,
        victim_probabilities=None if named is None else named.softmax(1),
        attacked=None if attacked is None else tuple(attacked),
        budgets=None if budgets is None else grey_levels(budgets) / 255,
    )


class Calibrator:
    """Calibrates a recogniser on each validation, for those very weights, and scores the calibration on test images.

    Args:
        coverage: The share of validation images that shall be answered.

    Attributes:
        calibration: What the last validation gave, or the checkpoint held; None after a training step.
    """

    def __init__(self, coverage: float) -> None:
        self.coverage = coverage
        self.calibration: Calibration | None = None
        self._fit = LogitCalibration(coverage)
        self._score: AnsweredAccuracy | None = None

    def begin(self, split: str, device: torch.device) -> None:
        """Forgets what the last pass over a split has counted."""
        if split == "val":
            self._fit.to(device).reset()
        else:
            self._score = AnsweredAccuracy(self.calibration.threshold if self.calibration else 0.0).to(device)

    def update(self, split: str, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch: logits ``(B, A)``, classes ``(B,)``."""
        if split == "val":
            self._fit.update(logits, labels)
        elif self._score is not None:
            self._score.update(calibrated(logits, self.calibration.temperature if self.calibration else 1.0), labels)

    def report(self, split: str) -> dict[str, Any]:
        """Calibrates after a validation; plain numbers in any case. Collective: call it on every rank.

        Returns:
            ``temperature``, ``threshold``, ``coverage``, ``achieved`` and ``images`` of the calibration, None where
            there is none; ``test`` with the numbers of `AnsweredAccuracy` after a test.
        """
        found: dict[str, Any] = {}
        if split == "val":
            try:
                self.calibration = self._fit.compute()
            except ValueError as error:
                self.calibration = None
                rank_zero_warn(f"REDRL: not calibrated: {error}")
        elif self._score is not None:
            found["test"] = {name: value.item() for name, value in self._score.compute().items()}
        return {**(self.calibration._asdict() if self.calibration else dict.fromkeys(Calibration._fields)), **found}

    def state(self) -> dict[str, float] | None:
        """For a checkpoint, plain numbers."""
        return None if self.calibration is None else self.calibration._asdict()

    def load(self, state: dict[str, Any] | None, fits: bool) -> None:
        """From a checkpoint; one that was made before there were calibrations has None.

        Args:
            state: As `state` gave it.
            fits: Whether a validation will come, which calibrates anew.
        """
        self.calibration = None if state is None else Calibration(**state)
        if self.calibration is not None and self.calibration.coverage != self.coverage and not fits:
            rank_zero_warn(
                f"REDRL: coverage {self.coverage:g} has no effect: the checkpoint is calibrated for "
                f"{self.calibration.coverage:g} (lightning validate with --model.coverage={self.coverage:g} writes one "
                "that is calibrated for it)"
            )


def keep_calibration(task: Any) -> None:
    """After `lightning validate`: the checkpoint once more with its calibration, as `NAME-calibrated.ckpt` beside it.

    Nothing is written where the checkpoint has a calibration of this coverage already.
    """
    trainer: pl.Trainer = task.trainer
    path, calibration = trainer.ckpt_path, task.calibrator.state()
    if trainer.state.fn != TrainerFn.VALIDATING or not trainer.is_global_zero or calibration is None:
        return
    if not isinstance(path, str | os.PathLike) or not Path(path).is_file() or getattr(trainer, "fast_dev_run", False):
        return
    path = Path(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if (content.get("calibration") or {}).get("coverage") == calibration["coverage"]:
        return
    content["calibration"] = calibration
    name = path.with_name(f"{path.stem.removesuffix('-calibrated')}-calibrated{path.suffix}")
    with replacing(name) as temporary:
        torch.save(content, temporary)
    print(f"calibrated for coverage {calibration['coverage']:g}: {name}", flush=True)


def check_inputs(inputs: str) -> None:
    """Raises ValueError for a network that cannot judge an image alone."""
    if inputs == "delta":
        raise ValueError(
            'REDRL: inputs="delta" cannot identify an image: it was trained on the true perturbation, which is known '
            'only with the clean image (use a checkpoint of inputs="residual" or "image")'
        )


def _check(task: Any, images: Tensor) -> None:
    check_inputs(task.hparams["inputs"])
    channels = task.hparams["in_channels"]
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"REDRL: images must be a floating-point tensor (B, C, H, W) in [0, 1], got {got} (divide 8-bit levels by "
            "255; one image is image[None])"
        )
    if channels is not None and images.shape[1] != channels:
        raise ValueError(
            f"REDRL: images must have {channels} channel(s), as those that the network was trained on, got "
            f"{images.shape[1]} (read_picture(path, channels={channels}) converts)"
        )
    if 0 in images.shape[2:]:
        raise ValueError(f"REDRL: images must have pixels, got shape {tuple(images.shape)}")
    if len(images) and not bool(((images >= 0) & (images <= 1)).all()):
        raise ValueError("REDRL: images must be in [0, 1], got values outside or NaN (divide 8-bit levels by 255)")
    if task.attack_classes is None:
        raise ValueError("REDRL: identify needs a trained network (REDRL.load_from_checkpoint gives one)")


_Found = tuple[Tensor, Tensor | None, Attribution | None]


def _victims(task: Any, count: int) -> tuple[str, ...]:
    """Names of the victims; numbers where the checkpoint was made without data."""
    return tuple(task.trained_victims or map(str, range(count)))


def _whole(task: Any, images: Tensor) -> _Found:
    recovery = task(images.to(task.device))
    return recovery.logits, recovery.reconstructed, recovery.attribution


def _tiled(task: Any, image: Tensor) -> _Found:
    """Logits of one image, G's output for it and what the heads say, tile by tile."""
    kind = next(task.psi.parameters()).dtype
    made = None if task.reconstructor is None else torch.empty_like(image)
    reach = 2 + 2 * int(task.hparams["blocks"])  # of G's 3 x 3 convolutions
    features: Any = 0
    for top, bottom in _edges(image.shape[-2]):
        for left, right in _edges(image.shape[-1]):
            tile = image[..., top:bottom, left:right].to(task.device, kind)
            if made is not None:
                above, before = max(0, top - reach), max(0, left - reach)
                window = image[..., above : bottom + reach, before : right + reach].to(task.device, kind)
                out = task.reconstructor(window)[..., top - above :, left - before :]
                out = out[..., : bottom - top, : right - left]
                made[..., top:bottom, left:right] = out.to(made)
                tile = torch.cat([tile - out.clamp(0, 1), tile], 1)
            features = features + task.psi.trunk(tile) * ((bottom - top) * (right - left))
    features = features / (image.shape[-2] * image.shape[-1])
    logits = task.psi.head(features)
    return logits, made, None if task.attribution is None else task.attribution(features, logits.argmax(1))


def _edges(length: int) -> Iterator[tuple[int, int]]:
    """Parts of a side, nearly equal, at most 512 long, that begin on Psi's grid."""
    parts = -(-length // 512)
    step = -(-length // (parts * _GRID)) * _GRID
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _results(images: Tensor, found: _Found) -> tuple[Tensor | None, ...]:
    """Logits, reconstruction in [0, 1], and the heads' answers, in float32 where the images are."""
    logits, made, said = found
    made = None if made is None else made.clamp(0, 1)
    parts = (logits, made, said and said.victim, said and said.budget)
    return tuple(None if part is None else part.float().to(images.device) for part in parts)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """In eval mode, and not compiled: each new size of image would be compiled anew."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        for part in training:
            part.training = True
